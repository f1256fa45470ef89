"""Plots as inline SVG elements, in the colours of the page that holds them (CSS variables)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from jax_rele.evaluation.calibration import reliability
from jax_rele.evaluation.summary import cell
from jax_rele.evaluation.svg import ACCENT, INK, LABEL, LINE, MUTED, PAPER, Look, draw_svg, look, short, standalone

__all__ = ["Curve", "DotRow", "curves", "dots", "intervals", "reliability_diagram", "score_distributions", "standalone"]

_CHANCE = {"auc": 0.5}


@dataclass(frozen=True)
class DotRow:
    """One line of a dot plot.

    Attributes:
      name: its text.
      figure: {"value", "ci95"}.
      series: the index of its colour and marker; None is drawn hollow.
      by_seed: values of single training seeds, drawn as ticks; None or NaN is left out.
    """

    name: str
    figure: Mapping
    series: int | None = None
    by_seed: Sequence[float | None] = ()


@dataclass(frozen=True)
class Curve:
    """One line of a learning curve: its name, the index of its colour and marker, and (x, {"value", "ci95"})."""

    name: str
    series: int
    points: Sequence[tuple[int, Mapping]]


def intervals(metric: str, baselines: Mapping[str, Mapping], models: Mapping[str, Mapping]) -> Markup:
    """One metric of every baseline (hollow) and model (filled, below), each a dot on its 95% interval.

    `baselines` and `models` are {name: {metric: {"value", "ci95"}}}.
    """
    hollow = [(DotRow(name, figures[metric]), (MUTED, "o", PAPER)) for name, figures in baselines.items()]
    filled = [(DotRow(name, figures[metric]), (ACCENT, "o", ACCENT)) for name, figures in models.items()]
    rows = [*hollow, *filled]
    description = "; ".join(f"{row.name} {cell(row.figure)}" for row, _ in rows)
    return draw_svg(
        lambda axes: _draw_dots(axes, rows, _CHANCE.get(metric), sign=False),
        (3.5, 0.3 + 0.36 * len(rows)),
        f"{metric} with 95% intervals: {description}",
    )


def dots(
    title: str, groups: Mapping[str, Sequence[DotRow]], *, line: float | None = None, sign: bool = False
) -> Markup:
    """Rows under headings, each a dot on its 95% interval with a tick for every training seed.

    Args:
      title: above the plot and first in the alternative text; no two plots of a page share one.
      groups: {heading: rows}; the empty heading is not written.
      line: the position of a dashed line, for chance or no difference.
      sign: whether values are differences: written with their sign, and zero in view.
    """
    rows: list[tuple[DotRow, Look] | tuple[str, None]] = []
    description = []
    for heading, members in groups.items():
        if heading:
            rows.append((heading, None))
        rows += [(row, look(row.series)) for row in members]
        for row in members:
            seeds = ", ".join(f"{value:.3f}" for value in _defined(row.by_seed))
            description.append(
                f"{heading} {row.name} {cell(row.figure, sign)}{f' (seeds {seeds})' if seeds else ''}".strip()
            )

    def draw(axes: Axes):
        axes.set_title(title, loc="left", size=8.5, weight="bold", color=INK)
        _draw_dots(axes, rows, line, sign)

    return draw_svg(
        draw, (3.5, 0.62 + 0.36 * len(rows)), f"{_line(title)}, with 95% intervals: {'; '.join(description)}"
    )


def curves(
    title: str, lines: Sequence[Curve], *, xlabel: str, levels: Mapping[str, float], sign: bool = False
) -> Markup:
    """Lines over a number of training pairs, with their 95% intervals as bars.

    The axis is logarithmic where the largest number is more than ten times the smallest; zero is at its left end.
    Lines are shifted slightly, so that their bars do not overlap.

    Args:
      title: above the plot and first in the alternative text; no two plots of a page share one.
      lines: the curves.
      xlabel: the kind of the numbers.
      levels: {name: y} of horizontal lines; one that lies far from all points is named at the edge and not drawn,
        unless values are differences.
      sign: whether values are differences, which are written with their sign.
    """
    positions, logarithmic = _positions([x for line in lines for x, _ in line.points])
    first, last = min(positions.values()), max(positions.values())
    span = last - first or 1.0
    low, high = _limits([figure for line in lines for _, figure in line.points], [])
    reach = max(0.5 * (high - low), 0.01)
    near = {name: y for name, y in levels.items() if sign or low - reach <= y <= high + reach}
    bottom, top = min([low, *near.values()]), max([high, *near.values()])
    columns = 2 if all(len(line.name) <= 18 for line in lines) else 1

    def draw(axes: Axes):
        axes.set_title(title, loc="left", size=8.5, weight="bold", color=INK)
        axes.set_xlabel(f"{xlabel} (log scale)" if logarithmic else xlabel)
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.locator_params(axis="y", nbins=6)
        axes.set_xlim(first - 0.08 * span, last + 0.08 * span)
        margin = max(0.1 * (top - bottom), 0.005)
        axes.set_ylim(bottom - margin, top + margin)
        for name, y in levels.items():
            if name in near:
                axes.axhline(y, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), label=short(name))
            else:
                position, side, arrow = (0.99, "top", "↑") if y > high else (0.01, "bottom", "↓")
                text = f"{short(name)} {y:.3f} {arrow}"
                axes.text(0.01, position, text, va=side, size=7.0, color=MUTED, transform=axes.transAxes)
        _draw_ticks(axes, positions, span)
        for number, line in enumerate(lines):
            ink, marker, fill = look(line.series)
            aside = (number - (len(lines) - 1) / 2) * 0.012 * span
            there = [(positions[x] + aside, figure) for x, figure in line.points if figure["value"] is not None]
            for x, figure in there:
                if figure["ci95"] is not None:
                    axes.plot([x, x], figure["ci95"], color=ink, linewidth=1.2, alpha=0.55)
            axes.plot(
                [x for x, _ in there],
                [figure["value"] for _, figure in there],
                marker=marker,
                markersize=4.5,
                color=ink,
                markerfacecolor=fill,
                linewidth=1.3,
                label=short(line.name),
            )
        axes.figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=7.5, handlelength=1.8)

    description = [f"{name} {y:.3f}" for name, y in levels.items()]
    description += [
        f"{line.name} " + ", ".join(f"{cell(figure, sign)} at {x:,}" for x, figure in line.points) for line in lines
    ]
    height = 2.5 + 0.17 * -(-(len(lines) + len(near)) // columns)
    return draw_svg(draw, (3.5, height), f"{_line(title)}, with 95% intervals, by {xlabel}: {'; '.join(description)}")


def reliability_diagram(name: str, before: np.ndarray, after: np.ndarray, outcome: np.ndarray) -> Markup:
    """Observed share of positives against the forecast, before (hollow) and after (filled) temperature scaling.

    Args:
      name: the model, for the alternative text.
      before: [N] P(positive) as the model says it.
      after: [N] P(positive) after temperature scaling.
      outcome: [N] bool, whether the pair's label is positive.
    """
    tables = [
        (reliability(p, outcome), ink, fill) for p, ink, fill in ((before, MUTED, PAPER), (after, ACCENT, ACCENT))
    ]

    def draw(axes: Axes):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        for binned, ink, fill in tables:
            some = binned["count"] > 0
            x, y, count = binned["mean_p"][some], binned["rate"][some], binned["count"][some]
            axes.plot(x, y, color=ink, linewidth=1.0, alpha=0.6)
            axes.scatter(x, y, s=10 + 90 * count / max(1, len(outcome)), color=fill, edgecolors=ink, zorder=3)
        axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xlabel="forecast P(positive)", ylabel="observed share")
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1])

    description = "; ".join(
        f"{when}: "
        + ", ".join(f"{p:.2f} became {rate:.2f}" for p, rate in zip(binned["mean_p"], binned["rate"]) if p == p)
        for when, (binned, _, _) in zip(("before scaling", "after"), tables)
    )
    return draw_svg(draw, (2.1, 2.0), f"Reliability of {name}, forecast and observed share by bin, {description}")


def score_distributions(name: str, scores: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Markup:
    """Histograms of the score (expected gain), one row per true label, each scaled to its own peak.

    Args:
      name: the model, for the alternative text.
      scores: [N] expected gains.
      labels: [N] int labels.
      names: the C labels.
    """
    groups = [scores[labels == label] for label in range(len(names))]
    edges = np.linspace(0.0, 1.0, 26)

    def draw(axes: Axes):
        write = partial(axes.text, transform=axes.get_yaxis_transform(), va="center", size=7.5)
        for row, (label, group) in enumerate(zip(names, groups)):
            height = np.histogram(np.clip(group, 0.0, 1.0), edges)[0]
            height = 0.55 * height / max(1, height.max())
            ink = LABEL.format(row)
            axes.bar(edges[:-1], height, np.diff(edges) * 0.86, bottom=row + 0.62 - height, align="edge", color=ink)
            axes.axhline(row + 0.62, color=LINE, linewidth=0.8)
            write(0.0, row - 0.18, short(label))
            count = f"{len(group)} pairs" if len(group) != 1 else "1 pair"
            write(1.0, row - 0.18, count, ha="right", color=MUTED)
        axes.set(xlim=(0, 1), ylim=(len(names) - 0.3, -0.3), xlabel="score (expected gain)")
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([])
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)

    description = "; ".join(
        f"{label} {np.median(group):.2f}" if len(group) else f"{label} no pair" for label, group in zip(names, groups)
    )
    return draw_svg(draw, (2.1, 0.4 + 0.46 * len(names)), f"Scores of {name} by true label, medians: {description}")


def _line(title):
    return title.replace("\n", ", ")


def _defined(values):
    return [value for value in values if value is not None and value == value]


def _limits(figures, more):
    """The range of values, of their intervals and of what else is drawn."""
    ends = [end for figure in figures for end in [figure["value"], *(figure["ci95"] or [])]]
    ends = _defined([*ends, *more])
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def _draw_dots(
    axes: Axes, rows: Sequence[tuple[DotRow, Look] | tuple[str, None]], line: float | None, sign: bool
) -> None:
    """Rows of (`DotRow`, (colour, marker, fill)); one of (text, None) is a heading."""
    drawn = [row for row, _ in rows if isinstance(row, DotRow)]
    zero = [0.0] if sign else []
    low, high = _limits([row.figure for row in drawn], [*zero, *(value for row in drawn for value in row.by_seed)])
    margin = max(0.06 * (high - low), 0.01)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(len(rows) - 0.6, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=5)
    if line is not None and low - margin < line < high + margin:
        axes.axvline(line, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    for position, (row, style) in enumerate(rows):
        background = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.5}
        write = partial(axes.text, transform=axes.get_yaxis_transform(), va="center", size=7.5, bbox=background)
        if isinstance(row, str) or style is None:
            write(0.0, position + 0.1, short(str(row)), weight="bold")
            continue
        ink, marker, fill = style
        write(0.0, position - 0.42, short(row.name))
        write(1.0, position - 0.42, cell(row.figure, sign), ha="right", color=MUTED)
        if row.figure["ci95"] is not None:
            axes.plot(row.figure["ci95"], [position, position], color=ink, linewidth=2.0, solid_capstyle="round")
        seeds = _defined(row.by_seed)
        if len(seeds) > 1:
            axes.plot(seeds, [position + 0.2] * len(seeds), "|", markersize=4.5, color=ink, markeredgewidth=0.9)
        if row.figure["value"] is not None:
            axes.plot([row.figure["value"]], [position], marker, markersize=5.5, color=ink, markerfacecolor=fill)


def _positions(numbers):
    """{number: position on the axis}, and whether the axis is logarithmic."""
    numbers = sorted(set(numbers))
    positive = [number for number in numbers if number > 0]
    if not positive or positive[-1] <= 10 * positive[0]:
        return {number: float(number) for number in numbers}, False
    nothing = np.log10(positive[0]) - 0.5
    return {number: float(np.log10(number)) if number > 0 else nothing for number in numbers}, True


def _draw_ticks(axes, positions, span):
    """A tick for every number, with its text where that does not overlap another."""
    labelled: list[int] = []
    for number in sorted(positions, reverse=True):
        if not labelled or positions[labelled[-1]] - positions[number] > 0.14 * span:
            labelled.append(number)
    axes.set_xticks([positions[number] for number in labelled], [f"{number:,}" for number in labelled])
    axes.set_xticks([positions[number] for number in positions if number not in labelled], minor=True)

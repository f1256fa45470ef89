"""Plots as inline SVG, in the colours of the page that holds them (CSS variables), so that they follow its scheme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jax_rele.evaluation.calibration import reliability
from jax_rele.evaluation.summary import cell

# Matplotlib wants concrete colours: each of these stands for a CSS variable and is replaced by it in the SVG.
_INK, _MUTED, _LINE, _ACCENT, _PAPER = "#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _LINE: "--line", _ACCENT: "--accent", _PAPER: "--card"}
_LABEL = "#0b00{:02x}"
_CHANCE = {"auc": 0.5}

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 8.0,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
}


def intervals(metric: str, baselines: Mapping[str, Mapping], models: Mapping[str, Mapping]) -> Markup:
    """One metric of every baseline (hollow) and model (filled), as a dot on its 95% interval.

    Args:
      metric: name of the metric.
      baselines: {name: {metric: {"value", "ci95"}}}.
      models: the same of the models, drawn below.

    Returns:
      An SVG element.
    """
    rows = [(name, figures[metric], name in models) for name, figures in {**baselines, **models}.items()]
    ends = [end for _, figure, _ in rows for end in (figure["ci95"] or [figure["value"]]) if end is not None]
    ends += [figure["value"] for _, figure, _ in rows if figure["value"] is not None]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    margin = max(0.06 * (high - low), 0.01)

    def draw(axes: Axes):
        axes.set_xlim(low - margin, high + margin)
        axes.set_ylim(len(rows) - 0.6, -0.75)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=_LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.locator_params(axis="x", nbins=5)
        if metric in _CHANCE and low - margin < _CHANCE[metric] < high + margin:
            axes.axvline(_CHANCE[metric], color=_MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        for row, (name, figure, is_model) in enumerate(rows):
            ink = _ACCENT if is_model else _MUTED
            place = axes.get_yaxis_transform()
            behind = {"facecolor": _PAPER, "edgecolor": "none", "pad": 0.5}
            told = {"y": row - 0.42, "transform": place, "va": "center", "size": 7.5, "bbox": behind}
            axes.text(0.0, s=_short(name), **told)
            axes.text(1.0, s=cell(figure), ha="right", color=_MUTED, **told)
            if figure["ci95"] is not None:
                axes.plot(figure["ci95"], [row, row], color=ink, linewidth=2.0, solid_capstyle="round")
            if figure["value"] is not None:
                fill = ink if is_model else _PAPER
                axes.plot([figure["value"]], [row], "o", markersize=5.5, color=ink, markerfacecolor=fill)

    told = "; ".join(f"{name} {cell(figure)}" for name, figure, _ in rows)
    return _svg(draw, (3.5, 0.3 + 0.36 * len(rows)), f"{metric} with 95% intervals: {told}")


def reliability_diagram(name: str, before: np.ndarray, after: np.ndarray, outcome: np.ndarray) -> Markup:
    """Observed share of positives against the forecast, before (hollow) and after (filled) temperature scaling.

    Args:
      name: the model, for the alternative text.
      before: [N] P(positive) as the model says it.
      after: [N] P(positive) after temperature scaling.
      outcome: [N] bool, whether the pair's label is positive.

    Returns:
      An SVG element.
    """
    tables = [
        (reliability(p, outcome), ink, fill) for p, ink, fill in ((before, _MUTED, _PAPER), (after, _ACCENT, _ACCENT))
    ]

    def draw(axes: Axes):
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        for binned, ink, fill in tables:
            some = binned["count"] > 0
            x, y, count = binned["mean_p"][some], binned["rate"][some], binned["count"][some]
            axes.plot(x, y, color=ink, linewidth=1.0, alpha=0.6)
            axes.scatter(x, y, s=10 + 90 * count / max(1, len(outcome)), color=fill, edgecolors=ink, zorder=3)
        axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xlabel="forecast P(positive)", ylabel="observed share")
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1])

    told = "; ".join(
        f"{when}: "
        + ", ".join(f"{p:.2f} became {rate:.2f}" for p, rate in zip(binned["mean_p"], binned["rate"]) if p == p)
        for when, (binned, _, _) in zip(("before scaling", "after"), tables)
    )
    return _svg(draw, (2.1, 2.0), f"Reliability of {name}, forecast and observed share by bin, {told}")


def score_distributions(name: str, scores: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Markup:
    """Histograms of the score (expected gain), one row per true label, each scaled to its own peak.

    Args:
      name: the model, for the alternative text.
      scores: [N] expected gains.
      labels: [N] int labels.
      names: the C labels.

    Returns:
      An SVG element.
    """
    groups = [scores[labels == label] for label in range(len(names))]
    edges = np.linspace(0.0, 1.0, 26)

    def draw(axes: Axes):
        for row, (label, group) in enumerate(zip(names, groups)):
            height = np.histogram(np.clip(group, 0.0, 1.0), edges)[0]
            height = 0.55 * height / max(1, height.max())
            ink = _LABEL.format(row)
            axes.bar(edges[:-1], height, np.diff(edges) * 0.86, bottom=row + 0.62 - height, align="edge", color=ink)
            axes.axhline(row + 0.62, color=_LINE, linewidth=0.8)
            axes.text(0.0, row - 0.18, _short(label), transform=axes.get_yaxis_transform(), va="center", size=7.5)
            count = f"{len(group)} pairs" if len(group) != 1 else "1 pair"
            axes.text(
                1.0,
                row - 0.18,
                count,
                transform=axes.get_yaxis_transform(),
                va="center",
                ha="right",
                size=7.5,
                color=_MUTED,
            )
        axes.set(xlim=(0, 1), ylim=(len(names) - 0.3, -0.3), xlabel="score (expected gain)")
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([])
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)

    told = "; ".join(
        f"{label} {np.median(group):.2f}" if len(group) else f"{label} no pair" for label, group in zip(names, groups)
    )
    return _svg(draw, (2.1, 0.4 + 0.46 * len(names)), f"Scores of {name} by true label, medians: {told}")


def _short(name):
    return name if len(name) <= 28 else name[:27] + "…"


def _svg(draw, size, told):
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser draws the text with its own fonts, so a glyph that matplotlib's font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        matplotlib.rcParams["svg.hashsalt"] = told
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"#0b00([0-9a-f]{2})", lambda found: f"var(--label-{int(found[1], 16)})", text)
    width, height = (72 * side for side in size)
    head = Markup('<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">')
    return head.format(width, height, told) + Markup(text[text.index(">") + 1 :])

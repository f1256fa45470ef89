"""SVG elements in the colours of the page that holds them (CSS variables), so that they follow its scheme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import TypeAlias

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Matplotlib wants concrete colours: each of these stands for a CSS variable and is replaced by it in the SVG.
INK, MUTED, LINE, ACCENT, PAPER = "#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005"
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", PAPER: "--card"}
LABEL = "#0b00{:02x}"

Look: TypeAlias = tuple[str, str, str]
"""Colour, marker and fill."""

_SERIES = "#0c00{:02x}"
_N_COLOURS = 7
_MARKERS = "osD^vPXp"
_PADDING = 8
_FONTS = "system-ui, -apple-system, Segoe UI, Roboto, Noto Sans, sans-serif"

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 8.0,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
}


def draw_svg(draw: Callable[[Axes], None], size: tuple[float, float], description: str) -> Markup:
    """An SVG element.

    Args:
      draw: draws into the axes.
      size: width and height in inches of 72 units.
      description: the alternative text; ids are derived from it, so no two elements of a page share one.
    """
    # The stubs list the names of parameters as literals, which a dict of strings does not match.
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
        # The browser draws the text with its own fonts, so a glyph that matplotlib's font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        matplotlib.rcParams["svg.hashsalt"] = description
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"#0b00([0-9a-f]{2})", lambda match: f"var(--label-{int(match[1], 16)})", text)
    text = re.sub(r"#0c00([0-9a-f]{2})", lambda match: f"var(--series-{int(match[1], 16)})", text)
    width, height = (72 * side for side in size)
    head = Markup('<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">')
    return head.format(width, height, description) + Markup(text[text.index(">") + 1 :])


def standalone(svg: Markup) -> str:
    """The text of an SVG file that shows a plot in the colours of the light scheme on white.

    Raises:
      ValueError: the plot has a colour that only its page defines, as those of labels in `score_distributions`.
    """
    colours = _light_scheme()
    tag, drawn = str(svg).split(">", 1)
    if unknown := sorted(set(re.findall(r"var\((--[\w-]+)\)", drawn)) - set(colours)):
        raise ValueError(f"only the page defines the colours {', '.join(unknown)}")
    drawn = re.sub(r"var\((--[\w-]+)\)", lambda match: colours[match[1]], drawn)
    width, height = (float(side) + 2 * _PADDING for side in re.findall(r'viewBox="0 0 (\S+) (\S+)"', tag)[0])
    tag = re.sub(r'viewBox="[^"]*"', f'viewBox="{-_PADDING} {-_PADDING} {width:g} {height:g}"', tag)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'{tag} xmlns="http://www.w3.org/2000/svg" width="{width:g}pt" height="{height:g}pt" font-family="{_FONTS}">\n'
        f'<rect x="{-_PADDING}" y="{-_PADDING}" width="{width:g}" height="{height:g}" fill="{colours["--card"]}"/>'
        f"{drawn}\n"
    )


def look(series: int | None) -> Look:
    """Colour, marker and fill of a series; 0 is the reference, None hollow.

    Colours and markers repeat in different steps, so that two series look alike only after 56 of them.
    """
    if series is None:
        return MUTED, "o", PAPER
    ink = _SERIES.format(series and 1 + (series - 1) % _N_COLOURS)
    return ink, _MARKERS[series % len(_MARKERS)], ink


def short(name: str) -> str:
    """The name, cut to 28 characters."""
    return name if len(name) <= 28 else name[:27] + "…"


@cache
def _light_scheme() -> dict[str, str]:
    """The colours of the pages' style sheet; its first block is the light scheme."""
    style = files("jax_rele.evaluation").joinpath("style.html.j2").read_text("utf-8")
    return dict(re.findall(r"(--[\w-]+): ([^;]+);", style[: style.index("@media")]))

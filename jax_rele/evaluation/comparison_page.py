"""A comparison of recipes as one self-contained HTML page, and its main figures as files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from markupsafe import Markup

from jax_rele.evaluation import plots
from jax_rele.evaluation.assemble import TEACHER
from jax_rele.evaluation.bootstrap import higher_is_better
from jax_rele.evaluation.comparison_text import Point, findings, points, setup, sizes, verdict
from jax_rele.evaluation.page import write_html
from jax_rele.evaluation.summary import HEADLINE, cell

_CHANCE = {"auc": 0.5}


def write_page(path: str | Path, document: Mapping) -> None:
    """Writes what `compare` returned as one HTML file, with the document's `name` and `split` where it has them."""
    write_html(
        path,
        "comparison.html.j2",
        name=document.get("name", "a run"),
        setup=setup(document),
        slices=document["slices"],
        reference=document["reference"],
        headline=HEADLINE,
        points=[_at(document, point) for point in _from_most(document)],
        curves=[
            {
                "metric": metric,
                "differences": [plot for _, plot in _curves(document, metric, difference=True)],
                "values": [plot for _, plot in _curves(document, metric, difference=False)],
            }
            for metric in HEADLINE
        ],
        columns=[(metric, "↑" if higher_is_better(metric) else "↓") for metric in document["metrics"]],
    )


def figures(document: Mapping) -> dict[str, str]:
    """The main figures of what `compare` returned: {file stem: text of an SVG file in the light scheme}.

    They are the differences to the reference on each slice with the most training pairs, and where there are several
    numbers of pairs the curves of the values and of the differences.
    """
    drawn = {}
    most = _from_most(document)[0]
    for metric in HEADLINE:
        for slice_name in document["slices"]:
            plot = _differences(document, metric, slice_name, most)
            if plot is not None:
                drawn[f"difference_{metric}_{slice_name}"] = plot
        for difference in (True, False):
            drawn |= dict(_curves(document, metric, difference=difference))
    return {re.sub(r"[^\w.+-]+", "_", stem): plots.standalone(plot) for stem, plot in drawn.items()}


def _from_most(document) -> list[Point]:
    return sorted(points(document), reverse=True)


def _at(document, point):
    """Sentences, plots and tables of one number of training pairs."""
    return {
        "sizes": sizes(point),
        "findings": findings(document, point),
        "differences": [
            (metric, [plot for name in document["slices"] if (plot := _differences(document, metric, name, point))])
            for metric in HEADLINE
        ],
        "values": [
            (metric, [_values(document, metric, name, point) for name in document["slices"]]) for metric in HEADLINE
        ],
        "tables": [(name, n_pairs, _rows(document, name, point)) for name, n_pairs in document["slices"].items()],
    }


def _cells(document, point, student=None):
    return [
        each
        for each in document["cells"]
        if (each["labelled"], each["teacher_labelled"]) == point and student in (None, each["student"])
    ]


def _students(document):
    return list(dict.fromkeys(each["student"] for each in document["cells"]))


def _series(document):
    """{recipe: index of its colour and marker}, the same in every plot."""
    recipes = dict.fromkeys(each["recipe"] for each in document["cells"])
    others = [recipe for recipe in recipes if recipe != document["reference"]]
    return {document["reference"]: 0} | {recipe: number for number, recipe in enumerate(others, start=1)}


def _differences(document, metric, slice_name, point) -> Markup | None:
    """What each recipe adds to the reference; None where nothing was compared."""
    series, groups = _series(document), {}
    for student in _students(document):
        cells = _cells(document, point, student)
        reference = next((each for each in cells if each["recipe"] == document["reference"]), None)
        rows = []
        for each in cells:
            figure = each["slices"][slice_name][metric]
            if figure["difference"] is not None and reference is not None:
                couples = zip(figure["by_seed"], reference["slices"][slice_name][metric]["by_seed"])
                seeds = [None if None in couple else couple[0] - couple[1] for couple in couples]
                rows.append(plots.DotRow(each["recipe"], figure["difference"], series[each["recipe"]], seeds))
        if rows:
            groups[student] = rows
    if not groups:
        return None
    title = _title(f"{metric} less {document['reference']}", document, slice_name, point)
    return plots.dots(title, groups, line=0.0, sign=True)


def _values(document, metric, slice_name, point) -> Markup:
    series = _series(document)
    groups = {"": [plots.DotRow(name, figures[metric]) for name, figures in document["others"][slice_name].items()]}
    for student in _students(document):
        groups[student] = [
            plots.DotRow(each["recipe"], figure, series[each["recipe"]], figure["by_seed"])
            for each in _cells(document, point, student)
            for figure in [each["slices"][slice_name][metric]]
        ]
    title = _title(metric, document, slice_name, point)
    return plots.dots(title, {name: rows for name, rows in groups.items() if rows}, line=_CHANCE.get(metric))


def _title(head, document, slice_name, point):
    trained = f"; trained on {point[0]:,} + {point[1]:,}" if len(points(document)) > 1 else ""
    return f"{head}\n{slice_name}, {document['slices'][slice_name]:,} pairs{trained}"


def _families(document) -> Iterator[tuple[int, int, list[Point]]]:
    """Points that differ in one number alone: (which of the two, the other one, the points)."""
    for axis in (0, 1):
        for other in sorted({point[1 - axis] for point in points(document)}, reverse=True):
            family = sorted(point for point in points(document) if point[1 - axis] == other)
            if len(family) > 1:
                yield axis, other, family


def _curves(document, metric, *, difference: bool) -> Iterator[tuple[str, Markup]]:
    """(file stem, plot) for each student and slice, over labelled pairs and over teacher-labelled ones."""
    kinds = ("labelled", "teacher-labelled")
    for axis, other, family in _families(document):
        for student in _students(document):
            for slice_name in document["slices"]:
                lines = _lines(document, metric, difference, axis, family, student, slice_name)
                if not lines:
                    continue
                teacher = document["others"][slice_name].get(TEACHER, {}).get(metric, {}).get("value")
                levels = {document["reference"]: 0.0} if difference else {} if teacher is None else {TEACHER: teacher}
                head = f"{metric} less {document['reference']}" if difference else metric
                stem = f"curve_{'difference_' if difference else ''}{metric}_{student}_{slice_name}"
                yield (
                    f"{stem}_by_{kinds[axis]}_with_{other}",
                    plots.curves(
                        f"{head}\n{student}, {slice_name}",
                        lines,
                        xlabel=f"{kinds[axis]} pairs, with {other:,} {kinds[1 - axis]}",
                        levels=levels,
                        sign=difference,
                    ),
                )


def _lines(document, metric, difference, axis, family, student, slice_name):
    points_of: dict[str, list[tuple[int, Mapping]]] = {recipe: [] for recipe in _series(document)}
    for point in family:
        for each in _cells(document, point, student):
            figure = each["slices"][slice_name][metric]
            figure = figure["difference"] if difference else figure
            if figure is not None:
                points_of[each["recipe"]].append((point[axis], figure))
    series = _series(document)
    return [plots.Curve(recipe, series[recipe], drawn) for recipe, drawn in points_of.items() if drawn]


def _rows(document, slice_name, point):
    """Table rows: what has no seeds, then every cell."""
    rows = []
    for name, figures in document["others"][slice_name].items():
        cells = [{"text": cell(figures[metric]), "difference": None, "kind": ""} for metric in document["metrics"]]
        rows.append({"name": name, "hollow": True, "cells": cells, "retained": ["" for _ in HEADLINE]})
    for each in _cells(document, point):
        figures, cells = each["slices"][slice_name], []
        for metric in document["metrics"]:
            difference = figures[metric]["difference"]
            text = None if difference is None else cell(difference, sign=True)
            kind = "open" if difference is None else verdict(difference, metric)
            cells.append({"text": cell(figures[metric]), "difference": text, "kind": kind})
        fractions = [figures[metric]["retained"] for metric in HEADLINE]
        retained = ["–" if fraction is None else f"{fraction:.1%}" for fraction in fractions]
        rows.append(
            {"name": f"{each['student']} {each['recipe']}", "hollow": False, "cells": cells, "retained": retained}
        )
    return rows

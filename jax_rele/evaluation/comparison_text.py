"""A comparison of recipes in Markdown: tables to be read as they are, and what they do and do not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jax_rele.evaluation.bootstrap import higher_is_better
from jax_rele.evaluation.summary import cell, markdown_table

HEADLINE = "auc"
"""The metric of the sentences and of the share of the teacher's quality."""

Point = tuple[int, int]
"""Numbers of training pairs: with a human label, and with the teacher's signals alone."""


def markdown(
    document: Mapping, *, title: str, columns: Sequence[str] = (HEADLINE, "macro_f1", "ece_calibrated")
) -> str:
    """What `compare` returned as Markdown, with the metrics `columns`.

    For every number of training pairs and every slice there is a table of the recipes with their difference to the
    reference and the fraction of the teacher's value; then one sentence per comparison.
    """
    several = len(points(document)) > 1
    lines = [f"# {title}", "", setup(document), ""]
    for point in points(document):
        if several:
            lines += [f"## {sizes(point)}", ""]
        for slice_name, n_pairs in document["slices"].items():
            lines += [f"**{slice_name}**, {n_pairs:,} pairs", ""]
            lines += _table(document, point, slice_name, columns)
            lines += [""]
    lines += [f"- {sentence}" for _, sentence in findings(document)]
    return "\n".join(lines) + "\n"


def points(document: Mapping) -> list[Point]:
    """The distinct numbers of training pairs of the cells, in order of first mention."""
    return list(dict.fromkeys((each["labelled"], each["teacher_labelled"]) for each in document["cells"]))


def sizes(point: Point) -> str:
    """A point in words."""
    return f"{point[0]:,} labelled, {point[1]:,} teacher-labelled training pairs"


def findings(document: Mapping, point: Point | None = None) -> list[tuple[str, str]]:
    """(kind, sentence) on the headline metric for each cell and slice with a difference to the reference.

    `kind` is `better`, `worse` or `open`; `point` selects cells by their numbers of training pairs.
    """
    sentences, other = [], document["reference"]
    for each in document["cells"]:
        here = each["labelled"], each["teacher_labelled"]
        if point not in (None, here):
            continue
        for slice_name, figures in each["slices"].items():
            difference = figures[HEADLINE]["difference"]
            if difference is None:
                continue
            kind = verdict(difference, HEADLINE)
            verb = {
                "better": "beats",
                "worse": "is worse than",
                "open": "is not shown to differ from" if difference["value"] is not None else "cannot be compared with",
            }[kind]
            text = cell(difference, sign=True) if difference["value"] is not None else "undefined on these pairs"
            where = f"{slice_name}, {here[0]:,} + {here[1]:,} pairs"
            sentences.append(
                (kind, f"{each['student']} {each['recipe']} {verb} {other} on {HEADLINE} ({where}): {text}.")
            )
    return sentences


def verdict(difference: Mapping, metric: str) -> str:
    """`better` or `worse` where the whole interval of a difference lies on that side of zero, else `open`."""
    if difference["ci95"] is None:
        return "open"
    low, high = difference["ci95"] if higher_is_better(metric) else [-end for end in reversed(difference["ci95"])]
    return "better" if low > 0 else "worse" if high < 0 else "open"


def setup(document: Mapping) -> str:
    """On what the recipes are compared, and what the intervals cover."""
    seeds, bootstrap = document["seeds"], document["bootstrap"]
    one = len(seeds) == 1
    listed = ", ".join(map(str, seeds))
    trained = f"one training seed ({listed})" if one else f"mean over {len(seeds)} training seeds ({listed})"
    covered = (
        "queries; they do not cover the chance of training, and are"
        if one
        else "queries and of seeds; they cover the choice of test queries and, the more roughly the fewer seeds there "
        "are, the chance of training, and are"
    )
    folds = document.get("folds")
    judged = f"split {document.get('split', 'test')}"
    if folds is not None:
        judged = (
            f"all in {folds} folds of a cross-validation: each pair is judged once, by models that were trained on no "
            "pair of its query, with biases and temperatures of their own; auc, neg_ap and spearman are means over the "
            "folds, weighted by their pairs, and numbers of training pairs are means over the folds"
        )
    return (
        f"{document['n_pairs']:,} pairs of {document['n_queries']:,} queries, {judged}; "
        f"{trained}, same data, start and steps for every recipe. In brackets 95% intervals from "
        f"{bootstrap['samples']:,} resamples of {covered} not adjusted for the number of comparisons."
    )


def _table(document, point, slice_name, columns) -> list[str]:
    head = ["model"]
    for column in columns:
        arrow = "↑" if higher_is_better(column) else "↓"
        head += [f"{column} {arrow}", f"less {document['reference']}"]
    head += [f"of the teacher's {HEADLINE}"]
    rows = []
    for name, figures in document["others"][slice_name].items():
        rows.append([name, *(text for column in columns for text in (cell(figures[column]), "")), ""])
    for each in document["cells"]:
        if (each["labelled"], each["teacher_labelled"]) != point:
            continue
        figures = each["slices"][slice_name]
        row = [f"{each['student']} {each['recipe']}"]
        for column in columns:
            difference = figures[column]["difference"]
            row += [cell(figures[column]), "" if difference is None else cell(difference, sign=True)]
        retained = figures[HEADLINE]["retained"]
        rows.append([*row, "" if retained is None else f"{retained:.1%}"])
    return markdown_table([head, *rows])

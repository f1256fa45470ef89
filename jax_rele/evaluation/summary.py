"""The metrics document in words: a table of every figure, and sentences on what the figures do and do not show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from jax_rele.evaluation.assemble import REFERENCE_RECIPE, TEACHER
from jax_rele.evaluation.bootstrap import metric_names
from jax_rele.evaluation.calibration import TEMPERATURE_BOUNDS

FEW_QUERIES = 20
"""Below this many queries with several items, a note says that nDCG compares nothing."""

MANY_QUERIES = 100_000
"""Where a difference needs more queries than this to be clear, no number is given."""

COLLAPSED = 0.02
"""Below this standard deviation of P(relevant), a note says that a model has collapsed to nearly one score."""

HEADLINE = ("auc", "macro_f1")
"""The metrics that the sentences are about; the table and the document hold all."""


def table(metrics: Mapping) -> str:
    """A Markdown table of what `build_metrics` returned: one row per baseline and model, one column per metric.

    A cell is `value [low, high]`, or a dash where the metric is undefined.
    """
    columns = metric_names(metrics["gain_maps"])
    everyone = {**metrics["baselines"], **metrics["models"]}
    rows = [[name, *(cell(figures[column]) for column in columns)] for name, figures in everyone.items()]
    return "\n".join(markdown_table([["model", *columns], *rows]))


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table that is readable as plain text; the first row is its head."""
    rows = [[row[0].replace("|", "\\|"), *row[1:]] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(row, widths)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def cell(figure: Mapping, sign: bool = False) -> str:
    """A value with its interval: `0.812 [0.790, 0.834]`; a dash where it is undefined."""
    if figure["value"] is None:
        return "–"
    value = f"{figure['value']:+.3f}" if sign else f"{figure['value']:.3f}"
    return value if figure["ci95"] is None else f"{value} [{figure['ci95'][0]:.3f}, {figure['ci95'][1]:.3f}]"


def verdict_lines(metrics: Mapping) -> list[str]:
    """Sentences on what `build_metrics` returned: paired comparisons, then what the figures cannot show."""
    return [text for _, text in findings(metrics)]


def findings(metrics: Mapping) -> list[tuple[str, str]]:
    """The sentences of `verdict_lines`, each with its kind: `better`, `worse`, `open` or `note`."""
    comparisons = [
        _comparison(metrics, model, other, metric)
        for model in metrics["models"]
        for metric in HEADLINE
        for other in _opponents(metrics, model, metric)
    ]
    return [*comparisons, *(("note", text) for text in _notes(metrics))]


def _opponents(metrics: Mapping, model: str, metric: str) -> list[str]:
    """The strongest baseline on this metric, the label-only twin, and for a student on the first metric the teacher."""
    defined = {
        name: figures[metric]["value"]
        for name, figures in metrics["baselines"].items()
        if figures[metric]["value"] is not None
    }
    rivals = [max(defined, key=lambda name: defined[name])] if defined else []
    twin = f"{model.rpartition(':')[0]}:{REFERENCE_RECIPE}"
    rivals += [twin] if twin in metrics["models"] and twin != model else []
    teacher = metric == HEADLINE[0] and TEACHER in metrics["models"] and model != TEACHER
    return rivals + ([TEACHER] if teacher else [])


def clear_queries(n: int, value: float, ci95: Sequence[float]) -> int | None:
    """How many test queries would make a difference of this size clear, rounded to two digits.

    An interval excludes zero when its half width is below |value|. Half widths are taken to shrink with the square root
    of the number of queries, as those of a mean over independent queries do, and the value to stay as it is:
    n (half width / |value|)^2 queries. The value is itself uncertain, so this is an order of magnitude.

    Args:
      n: the number of queries that the difference was measured on.
      value: the difference.
      ci95: its interval.

    Returns:
      The number of queries; None for a difference of zero.
    """
    if not value:
        return None
    needed = n * ((ci95[1] - ci95[0]) / 2 / abs(value)) ** 2
    return int(float(f"{needed:.1e}"))


def _comparison(metrics: Mapping, a: str, b: str, metric: str) -> tuple[str, str]:
    difference = next(
        entry for entry in metrics["differences"] if (entry["a"], entry["b"], entry["metric"]) == (a, b, metric)
    )
    if difference["value"] is None:
        return "open", f"{a} and {b} cannot be compared on {metric}: it is undefined for one of them on these pairs."
    text = f"difference {cell(difference, sign=True)}"
    if difference["ci95"] is None:
        return "open", f"{a} is not shown to beat {b} on {metric}: {text}, without an interval."
    low, high = difference["ci95"]
    if low > 0:
        return "better", f"{a} beats {b} on {metric}: {text}."
    if high < 0:
        return "worse", f"{a} is worse than {b} on {metric}: {text}."
    needed = clear_queries(metrics["n_queries"], difference["value"], difference["ci95"])
    if needed is not None and needed > MANY_QUERIES:
        text += f"; {MANY_QUERIES:,} queries would not show a difference of this size"
    elif needed is not None:
        text += f"; about {needed:,} queries would show a difference of this size"
    relation = "is not shown to differ from" if b == TEACHER else "does not beat"
    return "open", f"{a} {relation} {b} on {metric}: {text}."


def _notes(metrics: Mapping) -> Iterator[str]:
    columns = metric_names(metrics["gain_maps"])
    for name, figures in metrics["models"].items():
        if figures["auc"] == {"value": 0.5, "ci95": [0.5, 0.5]} and figures["spearman"]["value"] is None:
            yield f"{name} gives every pair the same score: its ranking metrics carry no information."
        elif (std := metrics["score_std"][name]) < COLLAPSED:
            yield f"{name} gives nearly every pair the same P(relevant): its standard deviation is {std:.3f}."
    written = metrics.get("rationales")
    if written and written["written"]:
        text = f"{written['parsed']} of the teacher's {written['written']} rationales parse"
        if agreement := written.get("agreement_with_rules"):
            text += (
                f"; their verdicts agree with the rule annotator's on {agreement['overall']:.3f} of the dimensions, "
                f"where always giving its most frequent verdict agrees on {agreement['most_frequent_verdict']:.3f}"
            )
        if asked := written.get("agreement_where_tags_ask"):
            text += (
                f"; on {asked['agreement']:.3f} of the {asked['dimensions']} that queries ask for by human tags, where "
                f"its most frequent verdict agrees on {asked['most_frequent_verdict']:.3f}"
            )
        if values_by := written.get("values_by"):
            text += f". It wrote none of them: the values are those of the {values_by}, verdicts and labels its own"
        yield text + "."
    for figures in metrics.get("rules", ()):
        yield f"Rule “{figures['rule']}”: {_broken(metrics, figures)}."
    everyone = [*metrics["baselines"].values(), *metrics["models"].values()]
    undefined = [column for column in columns if all(figures[column]["value"] is None for figures in everyone)]
    if undefined:
        yield (
            f"Undefined on these pairs for every model: {', '.join(undefined)} (one class only, or no query with two "
            f"or more items of which one has a gain)."
        )
    several = metrics["n_queries_with_several_items"]
    if 0 < several < FEW_QUERIES:
        yield f"The ndcg figures come from {several} queries with several items: too few to compare models by."
    for name in metrics["models"]:
        temperature = metrics["decision"][name]["temperature"]
        if any(abs(temperature / bound - 1.0) < 0.01 for bound in TEMPERATURE_BOUNDS):
            yield (
                f"{name}: the temperature {temperature:.2f} is at the edge of its search range, so its probabilities "
                f"are far from calibrated, or validation is too small to tell."
            )
    compared = len({(entry["a"], entry["b"]) for entry in metrics["differences"]})
    bootstrap = metrics["bootstrap"]
    yield (
        f"Intervals are 95% percentile intervals over {bootstrap['samples']} resamples of {metrics['n_queries']} "
        f"queries; they do not cover the chance of training, and are not adjusted for the {compared} comparisons."
    )


def _broken(metrics: Mapping, figures: Mapping) -> str:
    """How many labels break a rule."""
    pairs = figures["pairs"]
    text = f"by the verdicts of the rule annotator it applies to {pairs} of {metrics['n_pairs']} pairs"
    if not pairs:
        return f"{text}, so nothing is known of who keeps it"
    return f"{text}; labels that break it: " + ", ".join(
        f"{name} {cell(each)}" for name, each in figures["broken"].items()
    )

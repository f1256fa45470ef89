"""What rounds gave: figures, selection and cost of each, as JSON, Markdown and tables of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jax_rele.evaluation.summary import cell, markdown_table

Table = tuple[str, list[list[str]]]
"""A heading, and rows of which the first is the head."""


def build_document(name: str, metric: str, figures: Sequence[Mapping[str, Any]], split: str) -> dict[str, Any]:
    """What rounds.json holds.

    Args:
      name: of the run.
      metric: by which rounds are compared on the validation pairs.
      figures: of each round, see `command.round_figures`.
      split: on which models are evaluated.

    Returns:
      `name`, `metric`, `split`, `best`: the number of the round whose teacher is best on the validation pairs, and
      `rounds`.
    """
    best = max(figures, key=lambda each: each["validation"]["value"])
    return {"name": name, "metric": metric, "split": split, "best": best["round"], "rounds": list(figures)}


def markdown(document: Mapping[str, Any]) -> str:
    """The document as Markdown."""
    lines = [f"# {document['name']}: rounds", "", conclusion(document), ""]
    for heading, rows in tables(document):
        lines += [f"## {heading}", "", *markdown_table(rows), ""]
    return "\n".join(lines)


def conclusion(document: Mapping[str, Any]) -> str:
    """Which round is the best, in a sentence, and what its choice is worth."""
    best = document["rounds"][document["best"] - 1]
    text = f"Round {best['round']} has the best teacher on the validation pairs, {document['metric']} "
    text += f"{cell(best['validation'])}; its models are in {best['folder']}."
    last = document["rounds"][-1]
    if not last["gained"]:
        gain = cell(last["validation_gain"], sign=True)
        text += f" Round {last['round']} is not better ({gain}), so it trained no students and there were no more."
    return text + " The round was chosen by these pairs, so its validation figure is optimistic."


def tables(document: Mapping[str, Any]) -> list[Table]:
    """The tables of the page: validation, selection, evaluated models, cost."""
    rounds, metric = document["rounds"], document["metric"]
    numbers = [str(each["round"]) for each in rounds]
    gains = [_optional(each["validation_gain"]) for each in rounds]
    validation = [
        ["round", f"teacher's {metric}", "less the best before"],
        *([number, cell(each["validation"]), gain] for number, each, gain in zip(numbers, rounds, gains)),
    ]
    labels = list(rounds[0]["selected_labels"])
    reasons = list(dict.fromkeys(reason for each in rounds for reason in each["rejected"]))
    selection = [
        ["round", "unlabelled", "selected", *labels, *(f"not: {reason}" for reason in reasons), "rationales learnt"],
        *(
            [
                number,
                str(each["unlabelled"]),
                str(each["selected"]),
                *(str(each["selected_labels"][label]) for label in labels),
                *(str(each["rejected"].get(reason, 0)) for reason in reasons),
                str(each["rationales"]),
            ]
            for number, each in zip(numbers, rounds)
        ),
    ]
    models = list(dict.fromkeys(name for each in rounds for name in each["evaluated"]))
    evaluated = [
        ["model", *(f"round {each['round']}" for each in rounds if each["gained"])],
        *(
            [f"{name} {figure}", *(cell(each["evaluated"][name][figure]) for each in rounds if each["gained"])]
            for name in models
            for figure in ("auc", "macro_f1")
        ),
    ]
    stages = list(dict.fromkeys(name for each in rounds for name in each["seconds"]))
    cost = [
        ["round", *stages, "all"],
        *(
            [
                number,
                *(f"{each['seconds'].get(name, 0.0):.0f}" for name in stages),
                f"{sum(each['seconds'].values()):.0f}",
            ]
            for number, each in zip(numbers, rounds)
        ),
    ]
    return [
        ("Validation", validation),
        ("Unlabelled pairs that the teacher before explained", selection),
        (f"Models on the {document['split']} pairs", evaluated),
        ("Seconds", cost),
    ]


def _optional(figure: Mapping[str, Any] | None) -> str:
    return "–" if figure is None else cell(figure, sign=True)

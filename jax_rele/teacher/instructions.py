"""The instructions of a teacher that is asked in a chat: the task, what labels mean, and the form of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from jax_rele.types import VERDICTS


def default_instructions(
    labels: Mapping[str, str],
    dimensions: Mapping[str, str],
    order: str,
    rules: Sequence[str] = (),
    asked_rules: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The text for a config without instructions of its own.

    Args:
      labels, dimensions: {name: what it means}, in order; an empty meaning is left out.
      order: one of `names.ORDERS`.
      rules: business rules in words.
      asked_rules: {line of the answer: the rule in words of which it says whether it applies}.
    """
    lines = answer_lines([*dimensions, *asked_rules], order)
    text = "You judge how well an item of a shop fits a shopper's search query. The labels are:\n"
    text += _listed(labels)
    if dimensions and len(lines) > 1:
        text += "\n\nCompare what query and item say about:\n" + _listed(dimensions)
        text += f"\nThe verdict is {', '.join(VERDICTS[:-1])} or {VERDICTS[-1]}; where nothing is said, write -."
    if rules:
        text += "\n\nThese rules go before the labels' definitions:\n" + "\n".join(f"- {rule}" for rule in rules)
    if asked_rules:
        text += "\n\nSay for each rule whether it applies, match or absent:\n" + _listed(asked_rules)
    return text + answer_form(lines)


def answer_lines(names: Sequence[str], order: str) -> list[str]:
    """The lines of an answer that compares what is named, as instructions show them."""
    label_line, lines = "label: the label's name", [f"{name}: query | item | verdict" for name in names]
    return {
        "label_only": [label_line],
        "label_first": [label_line, *lines],
        "rationale_first": [*lines, label_line],
    }[order]


def answer_form(lines: Sequence[str]) -> str:
    """The end of instructions: the form of the answer."""
    return "\n\nAnswer in this form:\n" + "\n".join(lines)


def _listed(meanings: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {meaning}" if meaning else f"- {name}" for name, meaning in meanings.items())

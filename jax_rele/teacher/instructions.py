"""The instructions of a teacher that is asked in a chat: the task, what labels mean, and the form of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jax_rele.types import VERDICTS


def default_instructions(
    labels: Mapping[str, str], dimensions: Mapping[str, str], order: str, rules: Sequence[str] = ()
) -> str:
    """The text for a config without instructions of its own.

    Args:
      labels, dimensions: {name: what it means}, in order; an empty meaning is left out.
      order: one of `names.ORDERS`.
      rules: business rules in words.
    """
    label_line = "label: the label's name"
    comparison_lines = [f"{name}: query | item | verdict" for name in dimensions]
    lines = {
        "label_only": [label_line],
        "label_first": [label_line, *comparison_lines],
        "rationale_first": [*comparison_lines, label_line],
    }[order]
    text = "You judge how well an item of a shop fits a shopper's search query. The labels are:\n"
    text += _listed(labels)
    if len(lines) > 1:
        text += "\n\nCompare what query and item say about:\n" + _listed(dimensions)
        text += f"\nThe verdict is {', '.join(VERDICTS[:-1])} or {VERDICTS[-1]}; where nothing is said, write -."
    if rules:
        text += "\n\nThese rules go before the labels' definitions:\n" + "\n".join(f"- {rule}" for rule in rules)
    return text + "\n\nAnswer in this form:\n" + "\n".join(lines)


def _listed(meanings: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {meaning}" if meaning else f"- {name}" for name, meaning in meanings.items())

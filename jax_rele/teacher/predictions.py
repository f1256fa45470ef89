"""What a teacher predicts for pairs, and the mean of several samples of it (self-consistency)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jax_rele.rationale import ParseFailure
from jax_rele.types import VERDICTS, Rationale


@dataclass(frozen=True)
class TeacherPredictions:
    """The teacher's predictions for N pairs.

    Attributes:
      label_probs: [N, C].
      verdict_probs: [N, D, V]; NaN where no rationale was requested.
      texts: the generated rationales; only the label's line where no rationale was requested.
      rationales: the parsed texts, or the reason why they do not parse.
      label_scoring: `first_token` or `full` log-probability, see `Verbalizers.scoring`; or `external` signals.
      tokens_decoded: tokens and verdicts that the model decided.
      tokens_emitted: tokens of the texts, forced tokens and labels included.
      slots: of each text the tokens of its template's slots, as they were decided, where single samples were drawn.
      label_probs_of: {perspective: [N, C]} of each answer, where `label_probs` is the mean over several perspectives.
    """

    label_probs: np.ndarray
    verdict_probs: np.ndarray
    texts: tuple[str, ...]
    rationales: tuple[Rationale | ParseFailure, ...]
    label_scoring: str
    tokens_decoded: int
    tokens_emitted: int
    slots: tuple[tuple[tuple[int, ...], ...], ...] = ()
    label_probs_of: Mapping[str, np.ndarray] = field(default_factory=dict)


def average(
    samples: Sequence[TeacherPredictions], labels: Sequence[str], dimensions: Sequence[str]
) -> TeacherPredictions:
    """The mean distributions over samples for the same N pairs, with a rationale of one sample for each pair.

    That is a rationale with the likeliest label, where a sample has it, and among those one with most of the likeliest
    verdicts; the first one of several.

    Args:
      samples: at least one.
      labels, dimensions: names, in the order of the distributions.
    """
    label_probs = np.mean([one.label_probs for one in samples], axis=0)
    verdict_probs = np.mean([one.verdict_probs for one in samples], axis=0)
    best = []
    for pair in range(len(label_probs)):
        likeliest = labels[label_probs[pair].argmax()], [VERDICTS[index] for index in verdict_probs[pair].argmax(-1)]
        agreement = [_agreement(one.rationales[pair], *likeliest, dimensions) for one in samples]
        best.append(agreement.index(max(agreement)))
    return TeacherPredictions(
        label_probs=label_probs,
        verdict_probs=verdict_probs,
        texts=tuple(samples[one].texts[pair] for pair, one in enumerate(best)),
        rationales=tuple(samples[one].rationales[pair] for pair, one in enumerate(best)),
        label_scoring=samples[0].label_scoring,
        tokens_decoded=sum(one.tokens_decoded for one in samples),
        tokens_emitted=sum(one.tokens_emitted for one in samples),
    )


def _agreement(
    rationale: Rationale | ParseFailure, label: str, verdicts: Sequence[str], dimensions: Sequence[str]
) -> tuple[bool, int]:
    """Whether a rationale has the label, and how many of the verdicts; an unreadable one has less than any."""
    if isinstance(rationale, ParseFailure):
        return False, -1
    shared = [rationale.verdict(dimension) == verdict for dimension, verdict in zip(dimensions, verdicts)]
    return rationale.label == label, sum(shared)

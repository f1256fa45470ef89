"""Whether a model still sees and says what it did: two sets of scored pairs compared.

Scores are compared by the two-sample Kolmogorov-Smirnov test, categories (tiers, verdicts, pairs with unknown
characters or cut texts, the mix of groups) by the chi-squared test, all p-values corrected together by Holm, so that
two sets of one distribution differ in any of them in at most 5 of 100 comparisons. A difference counts as a shift if it
is significant and its population stability index (PSI) is at least 0.1: with many pairs every difference is
significant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.stats import chi2_contingency, ks_2samp

from jax_rele.data.tokens.student_inputs import cross_rows, tower_rows
from jax_rele.deployment.groups import group_names, largest_groups
from jax_rele.deployment.scorer import Scorer
from jax_rele.evaluation.page import write_html
from jax_rele.types import VERDICTS, Pair

ALPHA = 0.05
LEAST_PSI, LARGE_PSI = 0.1, 0.25
FEWEST = 50
"""Pairs of each set that a group needs to be compared."""

_BINS = 10
_LEAST_EXPECTED = 5

Profile = Mapping[str, np.ndarray]
"""What a model sees and says of N pairs, by name: `score` [N] float, all others [N] categories as text."""


@dataclass(frozen=True)
class Difference:
    """One distribution in two sets.

    Attributes:
      group: `all`, or a group such as `locale:us`.
      name: what is distributed.
      psi: population stability index.
      p: by the test; `p_adjusted` by Holm over all differences of a report.
      reference, current: share of each category, or of each bin of scores.
    """

    group: str
    name: str
    psi: float
    p: float
    p_adjusted: float
    reference: Mapping[str, float]
    current: Mapping[str, float]

    @property
    def shifted(self) -> bool:
        """Whether the difference is significant and not small."""
        return self.p_adjusted < ALPHA and self.psi >= LEAST_PSI


def profile(scorer: Scorer, pairs: Sequence[Pair], by: str | None = None) -> dict[str, np.ndarray]:
    """What a model sees and says of at least one pair; `by` adds their groups as `mix of locale` or of category."""
    scores = scorer.predict(pairs)
    manifest = scorer.manifest
    values: dict[str, np.ndarray] = {"score": scores.scores}
    if manifest.tiers:
        values["tier"] = np.array([manifest.tier_of(score) or "below" for score in scores.scores], object)
    if scores.verdict_probs is not None:
        chosen = np.array(VERDICTS, object)[scores.verdict_probs.argmax(axis=-1)]
        values |= {f"verdict on {name}": chosen[:, index] for index, name in enumerate(manifest.dimensions)}
    losses: list[np.ndarray] = []
    rows = tower_rows if scorer.embeds else cross_rows
    rows(scorer.tokenizer, pairs, manifest.fields, manifest.query_length, manifest.item_length, losses)
    _, _, _, unknown, query_cut, item_cut, *_ = losses[0].T
    values["unknown characters"] = _yes_no(unknown > 0)
    values["cut texts"] = _yes_no(query_cut + item_cut > 0)
    if by is not None:
        values[f"mix of {by}"] = group_names(pairs, by)
    return values


def compare_profiles(
    reference: Profile,
    current: Profile,
    reference_groups: np.ndarray | None = None,
    current_groups: np.ndarray | None = None,
    by: str = "group",
) -> list[Difference]:
    """Every distribution of two sets, for all pairs and for each group with 50 pairs in both.

    Args:
      reference, current: profiles with the same names.
      reference_groups, current_groups: the groups of their pairs.
      by: what the groups are of.
    """
    members = {"all": (slice(None), slice(None))}
    if reference_groups is not None and current_groups is not None:
        for name in largest_groups(reference_groups, current_groups):
            both = reference_groups == name, current_groups == name
            if min(each.sum() for each in both) >= FEWEST:
                members[f"{by}:{name}"] = both
    raw = []
    for group, (old, new) in members.items():
        for name in reference:
            if group != "all" and name.startswith("mix of "):
                continue
            a, b = reference[name][old], current[name][new]
            p, proportions = _scores(a, b) if name == "score" else _categories(a, b)
            raw.append((group, name, psi(*(list(each.values()) for each in proportions)), p, *proportions))
    adjusted = holm([p for _, _, _, p, *_ in raw])
    return [
        Difference(group, name, effect, p, corrected, *proportions)
        for (group, name, effect, p, *proportions), corrected in zip(raw, adjusted)
    ]


def psi(reference: Sequence[float], current: Sequence[float]) -> float:
    """The population stability index of two lists of shares; a share of 0 counts as 0.0001."""
    a, b = (np.maximum(np.asarray(each, np.float64), 1e-4) for each in (reference, current))
    return float(((b - a) * np.log(b / a)).sum())


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()


def advice(differences: Sequence[Difference]) -> list[str]:
    """What to do, most important first."""
    shifted = [each for each in differences if each.shifted]
    lines = []
    mixes = [each.name.removeprefix("mix of ") for each in shifted if each.name.startswith("mix of ")]
    if mixes:
        lines.append(
            f"The mix of {mixes[0]} changed. Differences of all pairs may come from it alone: look at each {mixes[0]}."
        )
    if groups := _groups(shifted, "score", "tier"):
        lines.append(
            f"Scores moved ({groups}). Label some hundred of the new pairs and run `jax-rele threshold` on them: the "
            "cut-offs hold for pairs like those they were chosen on. If they no longer hold, train with the new pairs."
        )
    if groups := _groups(shifted, "unknown characters"):
        lines.append(
            f"More or fewer texts have tokens that the tokenizer does not know ({groups}): look for a new language, "
            "script or encoding in the feed."
        )
    if groups := _groups(shifted, "cut texts"):
        lines.append(
            f"The share of texts that are cut changed ({groups}): if they became longer, put what tells items apart "
            "first, or train with a larger student.item_length or student.query_length."
        )
    dimensions = dict.fromkeys(each.name.removeprefix("verdict on ") for each in shifted if "verdict on" in each.name)
    if dimensions:
        lines.append(
            f"Verdicts moved on {', '.join(dimensions)}: see whether the catalogue still states it, in the fields read."
        )
    if not lines:
        return ["Nothing to do: no difference is both significant and larger than small."]
    return lines


def as_document(differences: Sequence[Difference], **about: object) -> dict[str, object]:
    """A report as plain data."""
    rows = [{**asdict(each), "shifted": each.shifted} for each in differences]
    return {**about, "shifted": any(row["shifted"] for row in rows), "advice": advice(differences), "differences": rows}


def write_report(path: str | Path, document: Mapping[str, object]) -> None:
    """Writes a report as one HTML page. Raises UserError where it cannot be written."""
    write_html(path, "drift.html.j2", package="jax_rele.deployment", alpha=ALPHA, least_psi=LEAST_PSI, **document)


def _groups(shifted: Sequence[Difference], *names: str) -> str:
    return ", ".join(dict.fromkeys(each.group for each in shifted if each.name in names))


def _yes_no(values: Sequence[bool]) -> np.ndarray:
    return np.array(["yes" if value else "no" for value in values], object)


def _scores(a: np.ndarray, b: np.ndarray) -> tuple[float, tuple[dict[str, float], dict[str, float]]]:
    """p, and the shares of both sets in the tenths of the first."""
    edges = np.unique(np.quantile(a, np.linspace(0, 1, _BINS + 1)[1:-1]))
    counts = [np.bincount(np.searchsorted(edges, x, side="right"), minlength=len(edges) + 1) / len(x) for x in (a, b)]
    limits = ["0", *(f"{edge:.3g}" for edge in edges), "1"]
    # Two edges may look alike when rounded: names stay apart by their number.
    names = [f"{number}: {low}–{high}" for number, (low, high) in enumerate(pairwise(limits), 1)]
    first, second = (dict(zip(names, each.tolist())) for each in counts)
    return float(ks_2samp(a, b, method="asymp").pvalue), (first, second)


def _categories(a: np.ndarray, b: np.ndarray) -> tuple[float, tuple[dict[str, float], dict[str, float]]]:
    names = sorted({*a.tolist(), *b.tolist()})
    counts = np.array([[int((x == name).sum()) for name in names] for x in (a, b)])
    first, second = (dict(zip(names, (row / row.sum()).tolist())) for row in counts)
    # Rare categories are tested as one, for the test's approximation to hold.
    expected = counts.sum(axis=0) * min(len(a), len(b)) / (len(a) + len(b))
    rare = expected < _LEAST_EXPECTED
    if rare.any():
        counts = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
        counts = counts[:, counts.sum(axis=0) * min(len(a), len(b)) / (len(a) + len(b)) >= _LEAST_EXPECTED]
    if counts.shape[1] < 2:
        return 1.0, (first, second)
    return float(chi2_contingency(counts).pvalue), (first, second)

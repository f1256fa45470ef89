"""threshold: cut-offs of a bundle's score with a bound on irrelevant pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jax_rele.cli.options import named_values
from jax_rele.data import read_pairs
from jax_rele.deployment import thresholds
from jax_rele.deployment.bundle import MANIFEST, Tier, set_tiers
from jax_rele.deployment.groups import group_names, largest_groups
from jax_rele.deployment.scorer import load_bundle
from jax_rele.errors import UserError
from jax_rele.io import check_output_file
from jax_rele.text import query_id
from jax_rele.types import LabelSchema, ReadOptions

LEAST_SHARE = 1e-6
"""A bound on a smaller one would need millions of pairs."""


def threshold(
    bundle: Path,
    pairs_path: str,
    *,
    at_most: float | None,
    tiers: Sequence[str] = (),
    confidence: float = 0.95,
    irrelevant: Sequence[str] = (),
    by: str | None = None,
    per_query: bool = False,
    write: bool = False,
    reading: ReadOptions = ReadOptions(),
    aliases: Sequence[str] = (),
) -> None:
    """Chooses cut-offs on labelled held-out pairs, prints their figures, and stores them in the bundle on request.

    Raises:
      UserError: bad options or input; or --write, and a target that no cut-off is shown to meet.
    """
    targets = _targets(at_most, tiers)
    if not 0 < confidence < 1:
        raise UserError(f"--confidence {confidence}: must lie between 0 and 1")
    scorer = load_bundle(bundle)
    if write:
        check_output_file(bundle / MANIFEST)
    schema = scorer.schema
    pairs, bad = read_pairs(
        pairs_path,
        label_names=schema.names,
        reading=reading,
        label_map={**scorer.manifest.labels.aliases, **named_values(aliases, "--aliases")},
        require_label=True,
        with_split=False,
    )
    unreadable = scorer.unreadable_pairs(scorer.encode(pairs), pairs)
    if unreadable:
        index, (side, reason) = next(iter(unreadable.items()))
        print(f"{pairs_path}: {len(unreadable)} pairs left out, the first is {pairs[index].pair_id}: {side}: {reason}")
        pairs = [pair for index, pair in enumerate(pairs) if index not in unreadable]
    if not pairs:
        raise UserError(f"{pairs_path}: the model can read none of the pairs; give pairs in its language")
    if bad:
        print(f"{pairs_path}: {len(bad)} bad rows left out, the first is {bad[0].named(pairs_path)}")
    chosen_labels = _irrelevant_labels(schema, irrelevant)
    n_read, n_queries = len(pairs), len({query_id(pair.query) for pair in pairs})
    if per_query:
        pairs = [pairs[index] for index in thresholds.one_per_query(pairs)]
    scores = scorer.predict(pairs).scores
    is_irrelevant = np.array([pair.label in chosen_labels for pair in pairs])
    is_positive = schema.is_positive[[schema.index(pair.label) for pair in pairs]]
    console = Console()
    console.print(
        escape(
            f"{len(pairs)} pairs of {n_queries} queries; irrelevant: {', '.join(chosen_labels)} "
            f"({is_irrelevant.mean():.1%}); positive: {', '.join(schema.positive)} ({is_positive.mean():.1%})"
        )
    )
    table = Table()
    for name in ("tier", "pairs", "cut-off", "shown", "recall", "irrelevant", f"bound {confidence:.0%}", "n"):
        is_text = name in ("tier", "pairs")
        table.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    written, failures, admitting = [], [], []
    names = None if by is None else group_names(pairs, by)
    for tier, target in targets.items():
        choice = thresholds.choose_threshold(scores, is_irrelevant, target, confidence)
        if choice.threshold is None:
            needed = thresholds.pairs_needed(scores, is_irrelevant, target, confidence)
            failures.append(_failure(tier, target, confidence, needed, len(pairs)))
            continue
        groups = {"all": np.ones(len(pairs), bool)}
        if names is not None:
            groups |= {f"{by}:{name}": names == name for name in largest_groups(names)}
        for name, member in groups.items():
            figures = thresholds.measure(
                scores[member], is_irrelevant[member], is_positive[member], choice.threshold, confidence
            )
            table.add_row(
                escape(tier),
                escape(name),
                f"{choice.threshold:.3f}",
                _percent(figures.fraction),
                _percent(figures.recall),
                _percent(figures.observed),
                _percent(figures.bound),
                str(figures.n),
            )
        if (scores >= choice.threshold).all():
            admitting.append(tier)
        kind = f"{len(pairs)} pairs, one a query" if per_query else f"{len(pairs)} pairs of {n_queries} queries"
        promise = f"at most {target:.3g} {' or '.join(chosen_labels)}, confidence {confidence:g}, {kind}"
        written.append(Tier(name=tier, least=choice.threshold, promise=promise))
    if written:
        console.print(table)
    for line in failures:
        console.print(escape(line))
    for tier in admitting:
        console.print(
            escape(
                f"{tier}: its cut-off admits every pair, as few enough of all pairs are irrelevant; a tier below "
                "it, or "
            )
            + "one like it, is never reached."
        )
    if not per_query and n_queries < n_read:
        console.print(
            f"Pairs of one query depend on each other, and {n_read} pairs are of {n_queries} queries: the bound takes "
            "them as independent and may be too low. --per-query takes one pair of each, for which it holds."
        )
    if by is not None and written:
        console.print("The bound is guaranteed for all pairs together; those of groups are each for itself.")
    if not write:
        return
    if failures:
        raise UserError(f"--write: no cut-off is shown for {len(failures)} of the tiers, so {bundle} is as it was")
    written.sort(key=lambda tier: -tier.least)
    set_tiers(bundle, tuple(written))
    print(f"{bundle}: {len(written)} tiers written")


def _targets(at_most: float | None, tiers: Sequence[str]) -> Mapping[str, float]:
    if (at_most is None) == (not tiers):
        raise UserError("give --at-most-irrelevant SHARE for one cut-off, or --tier NAME=SHARE ... for several")
    texts = named_values(tiers, "--tier") if tiers else {"relevant": str(at_most)}
    targets = {}
    for name, text in texts.items():
        try:
            targets[name] = float(text)
        except ValueError:
            targets[name] = math.nan
        option = f"--tier {name}={text}" if tiers else f"--at-most-irrelevant {text}"
        if not 0 < targets[name] < 1:
            raise UserError(f"{option}: the share must lie between 0 and 1, e.g. 0.02")
        if targets[name] < LEAST_SHARE:
            raise UserError(f"{option}: no number of pairs shows so small a share; give {LEAST_SHARE:g} or more")
    return targets


def _irrelevant_labels(schema: LabelSchema, names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in schema.names:
            raise UserError(f"--irrelevant {name}: is none of the labels {', '.join(schema.names)}")
    if names and len(set(names)) == len(schema):
        raise UserError("--irrelevant: names every label; leave some out")
    least = min(schema.gains)
    return tuple(dict.fromkeys(names)) or tuple(name for name, gain in zip(schema.names, schema.gains) if gain == least)


def _failure(tier: str, target: float, confidence: float, needed: int | None, n: int) -> str:
    start = f"{tier}: no cut-off is shown to have at most {target:.3g} irrelevant pairs at {confidence:.0%} confidence"
    if needed is None:
        return f"{start}: none has so few here; the model does not separate them, or take a larger share"
    if needed <= n:
        return f"{start}: irrelevant pairs stand among the highest scores; about as many pairs again could show one"
    return f"{start} by {n} pairs; about {needed} pairs like these would show one"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"

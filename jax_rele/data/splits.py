"""Splits by query, and the slice of rare queries."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jax_rele.data.schema import SPLITS
from jax_rele.errors import UserError
from jax_rele.types import Pair


def normalise_query(query: str) -> str:
    """The form in which two queries are the same query: NFKC, case-folded, white space collapsed."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", query).casefold())
    return " ".join(folded.split())


def words(text: str) -> list[str]:
    """The words of a text after `normalise_query`: runs of letters, digits and underscores."""
    return re.findall(r"\w+", normalise_query(text))


def assign_splits(pairs: Sequence[Pair], fractions: tuple[float, float, float], seed: int) -> list[Pair]:
    """Gives every pair a split such that no query is in two of them.

    Pairs that bring a split keep it, and so do all pairs of the same query. The other queries are ordered by a hash of
    (seed, normalised query) within each stratum, the strata are interleaved in proportion to their sizes, and the list
    is cut at the fractions. The counts of queries are thus exact to one query, every stratum is divided alike, and the
    result depends on neither the order of the rows nor the machine. (Hashing each query to a split on its own would be
    stable when data are added, but its counts vary too much on a few hundred queries.) A query's stratum is the label
    of its pair with the smallest `pair_id`.

    Args:
      pairs: the pairs.
      fractions: shares of the queries for train, validation and test; they sum to 1.
      seed: another seed gives another split.

    Returns:
      The pairs in the same order, with `split` set.

    Raises:
      UserError: a query is in two of the given splits, the fractions are no shares, or a split comes out empty.
    """
    if len(fractions) != 3 or not all(0 <= share <= 1 for share in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(f"the fractions of train, validation and test must be shares that sum to 1, got {fractions}")
    by_query: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_query[normalise_query(pair.query)].append(pair)
    splits = {query: given for query, group in by_query.items() if (given := _given_split(query, group))}
    strata: dict[str | None, list[str]] = defaultdict(list)
    for query, group in by_query.items():
        if query not in splits:
            strata[min(group, key=lambda pair: pair.pair_id).label].append(query)
    order = _interleave(list(strata.values()), seed)
    n_train = round(len(order) * fractions[0])
    n_before_test = round(len(order) * (fractions[0] + fractions[1]))
    splits |= dict.fromkeys(order[:n_train], "train")
    splits |= dict.fromkeys(order[n_train:n_before_test], "validation")
    splits |= dict.fromkeys(order[n_before_test:], "test")
    for split in SPLITS:
        if split not in splits.values():
            raise UserError(
                f"the {split} split is empty: {len(order)} of {len(by_query)} queries bring no split and are divided "
                f"by the fractions {tuple(fractions)}; raise data.splits.{split}, add queries, or give rows the "
                f"split {split}"
            )
    return [replace(pair, split=splits[normalise_query(pair.query)]) for pair in pairs]


def long_tail(pairs: Sequence[Pair], max_frequency: int) -> np.ndarray:
    """Which pairs have a rare query.

    Where every pair has a `query_frequency`, a query is rare if that is at most `max_frequency`. Otherwise it is rare
    if its rarest word is in at most `max_frequency` of the distinct queries and titles of the training split. A
    training query counts itself, so compare shares within a split only.

    Args:
      pairs: the pairs of all splits.
      max_frequency: the largest frequency that counts as rare.

    Returns:
      [len(pairs)] bool.

    Raises:
      ValueError: frequencies are missing and no pair is in the training split.
    """
    if all(pair.query_frequency is not None for pair in pairs):
        return np.array([pair.query_frequency <= max_frequency for pair in pairs], bool)
    train = [pair for pair in pairs if pair.split == "train"]
    if not train:
        raise ValueError("no pair is in the training split: call assign_splits first")
    queries = {normalise_query(pair.query) for pair in train}
    titles = {normalise_query(pair.item.title) for pair in train}
    frequency = Counter(word for texts in (queries, titles) for text in texts for word in set(words(text)))
    return np.array(
        [min((frequency[word] for word in words(pair.query)), default=0) <= max_frequency for pair in pairs], bool
    )


def _given_split(query: str, group: Sequence[Pair]) -> str | None:
    """The split that the pairs of a query bring, None if they bring none."""
    given: dict[str, Pair] = {}
    for pair in group:
        if pair.split is not None:
            given.setdefault(pair.split, pair)
    if len(given) > 1:
        one, two = sorted(given)[:2]
        raise UserError(
            f"the query {query!r} is in two splits: {one} (pair_id {given[one].pair_id!r}) and {two} (pair_id "
            f"{given[two].pair_id!r}); give all pairs of a query one split, or leave the splits out"
        )
    return next(iter(given), None)


def _interleave(strata: Sequence[Sequence[str]], seed: int) -> list[str]:
    """One order of all queries of which every prefix holds the strata in proportion to their sizes, nearly."""
    places = []
    for stratum in strata:
        hashes = sorted((hashlib.blake2b(f"{seed} {query}".encode()).digest(), query) for query in stratum)
        for rank, (digest, query) in enumerate(hashes):
            places.append(((rank + 0.5) / len(stratum), digest, query))
    return [query for _, _, query in sorted(places)]

"""Splits by query, and the slice of rare queries."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from jax_rele.errors import UserError
from jax_rele.names import SPLITS
from jax_rele.text import lexical_words, query_id, text_key, word_runs
from jax_rele.types import Pair

NO_SPLIT = -1
"""The index of "no split" where splits are indices in `SPLITS`."""


def query_key(query: str, seed: int) -> int:
    """64 bits that stand for a query's identity (`query_id`), and order queries at random by the seed."""
    text = f"{seed} {query_id(query)}"
    return int.from_bytes(hashlib.blake2b(text.encode()).digest()[:8])


def strictest_source_splits(queries: np.ndarray, source_splits: np.ndarray) -> np.ndarray:
    """The strictest split that the source gives the rows of each query: test before validation before train.

    Args:
      queries: [N] `query_key`s.
      source_splits: [N] indices in `SPLITS`, `NO_SPLIT` for none. A row with another split than its query's strictest
        one leaks.

    Returns:
      [N] indices in `SPLITS`, `NO_SPLIT` where no row of the query has one.
    """
    keys, inverse = np.unique(queries, return_inverse=True)
    last = np.full(len(keys), NO_SPLIT, np.int8)
    np.maximum.at(last, inverse, source_splits)
    return last[inverse]


def divide(
    queries: np.ndarray,
    labels: np.ndarray,
    ranks: np.ndarray,
    source_splits: np.ndarray,
    fractions: tuple[float, float, float],
) -> np.ndarray:
    """Gives every row a split such that no query is in two of them.

    Rows that have a split keep it, and so do all rows of the same query; but where some have train and none has
    validation (or test), the queries of train are divided in proportion to the fractions of train and of the missing
    splits. Queries without a split are divided by the fractions.

    To divide queries, they are ordered by their key within each stratum (the label of the query's row with the smallest
    rank), the strata are interleaved in proportion to their sizes, and the list is cut at the fractions. The counts of
    queries are thus exact to one query, every stratum is divided alike, and the result depends on neither the order of
    the rows nor the machine. Hashing each query to a split on its own would let the counts of small data vary too much.

    Args:
      queries: [N] `query_key`s.
      labels: [N] integers.
      ranks: [N] rank of each row's `pair_id` in their order.
      source_splits: [N] indices in `SPLITS`, `NO_SPLIT` for none; those of one query do not differ.
      fractions: of the queries for train, validation and test; they sum to 1.

    Returns:
      [N] indices in `SPLITS`.

    Raises:
      UserError: the fractions are not valid, or a split comes out empty.
    """
    if len(fractions) != 3 or not all(0 <= fraction <= 1 for fraction in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(f"the fractions of train, validation and test must lie in [0, 1] and sum to 1, got {fractions}")
    keys, inverse, strata = _strata(queries, labels, ranks)
    source_split = np.full(len(keys), NO_SPLIT, np.int8)
    np.maximum.at(source_split, inverse, source_splits)

    assigned = source_split.copy()
    lacking = [index in (0, *np.setdiff1d(range(len(SPLITS)), source_split)) for index in range(len(SPLITS))]
    train_fractions = np.where(lacking, fractions, 0.0)
    for part, cut in (
        (source_split == NO_SPLIT, fractions),
        (source_split == 0, train_fractions / (train_fractions.sum() or 1.0)),
    ):
        in_order = _interleave(keys, strata, np.flatnonzero(part))
        n_train, n_before_test = (round(len(in_order) * fraction) for fraction in (cut[0], cut[0] + cut[1]))
        if sum(cut):
            assigned[in_order] = np.repeat([0, 1, 2], np.diff([0, n_train, n_before_test, len(in_order)]))
    for index, split in enumerate(SPLITS):
        if not (assigned == index).any():
            free = int((source_split == NO_SPLIT).sum())
            divided = f"{free} of {len(keys)} queries have no split and are divided by the fractions {tuple(fractions)}"
            if not free:
                raise UserError(
                    f"the {split} split is empty: all {len(keys)} queries bring a split, and none is in {split}; give "
                    f"rows the split {split}, or set data.splits.existing to ignore"
                )
            fix = f"raise data.splits.{split}, add queries, or give rows the split {split}"
            raise UserError(f"the {split} split is empty: {divided}; {fix}")
    return assigned[inverse]


def divide_folds(
    queries: np.ndarray,
    labels: np.ndarray,
    ranks: np.ndarray,
    fold: tuple[int, int],
    fractions: tuple[float, float, float],
) -> np.ndarray:
    """Gives every row a split for one run of a cross-validation by query.

    The queries are ordered as `divide` orders them and cut into K folds of equal numbers, to one query. The k-th fold
    is the test split. Those after it and then those before it are cut into train and validation, so that over the K
    runs every query is once in the test split and the validation splits differ. With a test fraction of 1 / K the last
    fold's run has the splits of `divide`, to one query.

    Args:
      queries: [N] `query_key`s.
      labels: [N] integers, negative for none. A query's stratum is the label of its first row that has one.
      ranks: [N] rank of each row's `pair_id` in their order.
      fold: (k, K), k from 1.
      fractions: of train, validation and test; the last is not used.

    Returns:
      [N] indices in `SPLITS`.

    Raises:
      UserError: there are fewer queries than folds, or too few for a train and a validation split.
    """
    number, count = fold
    labelled_first = np.where(labels < 0, ranks + len(ranks), ranks)
    keys, inverse, strata = _strata(queries, labels, labelled_first)
    if count > len(keys):
        raise UserError(f"{count} folds need as many queries, there are {len(keys)}; ask for fewer folds")
    in_order = _interleave(keys, strata, np.arange(len(keys)))
    start, end = (number - 1) * len(keys) // count, number * len(keys) // count
    others = np.concatenate([in_order[end:], in_order[:start]])
    n_train = round(len(others) * fractions[0] / (fractions[0] + fractions[1] or 1.0))
    assigned = np.full(len(keys), SPLITS.index("test"), np.int8)
    for split, members in (("train", others[:n_train]), ("validation", others[n_train:])):
        if not len(members):
            raise UserError(
                f"the {split} split is empty: fold {number} of {count} leaves {len(others)} of {len(keys)} queries to "
                f"train and validation, which data.splits divides {fractions[0]:g} to {fractions[1]:g}; raise "
                f"data.splits.{split}, or add queries"
            )
        assigned[members] = SPLITS.index(split)
    return assigned[inverse]


def assign_splits(pairs: Sequence[Pair], fractions: tuple[float, float, float], seed: int) -> list[Pair]:
    """The pairs, in the same order, with a `split` such that no query is in two of them, as `divide` gives it.

    Raises:
      UserError: a query is in two of the given splits, the fractions are not valid, or a split comes out empty.
    """
    queries = np.array([query_key(pair.query, seed) for pair in pairs], np.uint64)
    source_splits = np.array([SPLITS.index(pair.split) if pair.split else NO_SPLIT for pair in pairs], np.int8)
    leaks = (source_splits != NO_SPLIT) & (source_splits != strictest_source_splits(queries, source_splits))
    for row in np.flatnonzero(leaks).tolist():
        one, same_query = pairs[row], np.flatnonzero(queries == queries[row]).tolist()
        raise leak_error(one, next(pairs[i] for i in same_query if pairs[i].split not in (None, one.split)))
    names = sorted({pair.label or "" for pair in pairs})
    labels = np.array([names.index(pair.label or "") for pair in pairs], np.int64)
    # NumPy's texts drop trailing NULs, ids may not: ranks by Python's order.
    ranks = np.empty(len(pairs), np.int64)
    ranks[sorted(range(len(pairs)), key=lambda row: pairs[row].pair_id)] = np.arange(len(pairs))
    indices = divide(queries, labels, ranks, source_splits, fractions)
    return [replace(pair, split=SPLITS[index]) for pair, index in zip(pairs, indices)]


def leak_error(one: Pair, two: Pair) -> UserError:
    """The error for two pairs of one query that have two splits."""
    (split, pair_id), (other, other_id) = sorted((pair.split, pair.pair_id) for pair in (one, two))
    return UserError(
        f"the query {query_id(one.query)[:80]!r} is in two splits: {split} (pair_id {pair_id!r}) and {other} "
        f"(pair_id {other_id!r}); give all pairs of a query one split, set data.splits.leakage to drop, or "
        f"data.splits.existing to ignore"
    )


def long_tail(pairs: Sequence[Pair], max_frequency: int) -> np.ndarray:
    """Which pairs have a rare query.

    A pair's own `long_tail` mark decides where it has one. Where all other pairs have a `query_frequency`, their query
    is rare if that is at most `max_frequency`. Otherwise it is rare if its rarest word is in at most `max_frequency` of
    the distinct queries and titles of the training split. A training query counts itself, so fractions of rare queries
    can be compared within a split only. In scripts without spaces a letter counts as often as the more frequent of the
    two pairs of letters that it is in: the other one may belong to two words.

    Returns:
      [len(pairs)] bool.

    Raises:
      ValueError: marks and frequencies are missing and no pair is in the training split.
    """
    frequency: Counter[str] | None = None
    if any(pair.long_tail is None and pair.query_frequency is None for pair in pairs):
        training = [pair for pair in pairs if pair.split == "train"]
        if not training:
            raise ValueError("no pair is in the training split: call assign_splits first")
        queries = {query_id(pair.query) for pair in training}
        titles = {text_key(pair.item.title) for pair in training}
        frequency = Counter(word for texts in (queries, titles) for text in texts for word in set(lexical_words(text)))

    def is_rare(pair: Pair) -> bool:
        if pair.long_tail is not None:
            return pair.long_tail
        if frequency is None:
            return (pair.query_frequency or 0) <= max_frequency
        return _rarest(pair.query, frequency) <= max_frequency

    return np.fromiter(map(is_rare, pairs), bool, len(pairs))


def _rarest(query: str, frequency: Mapping[str, int]) -> int:
    """How often the rarest part of a query occurs; 0 for a query without words."""
    counts = []
    for run in word_runs(query):
        of_pairs = [frequency[word] for word in run]
        of_letters = [max(of_pairs[max(i - 1, 0) : i + 1]) for i in range(len(run) + 1)]
        counts += of_letters if len(run) > 1 else of_pairs
    return min(counts, default=0)


def _strata(queries: np.ndarray, labels: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[Q] distinct keys of queries, [N] the index of each row's, [Q] the label of each query's row of smallest rank."""
    keys, inverse = np.unique(queries, return_inverse=True)
    smallest = np.full(len(keys), ranks.max(initial=0), ranks.dtype)
    np.minimum.at(smallest, inverse, ranks)
    rows = np.flatnonzero(ranks == smallest[inverse])[::-1]
    strata = np.empty(len(keys), labels.dtype)
    # Of several assignments to one index the last one counts: the first row.
    strata[inverse[rows]] = labels[rows]
    return keys, inverse, strata


def _interleave(keys: np.ndarray, strata: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The members in an order of which every prefix holds the strata in proportion to their sizes, nearly."""
    members = members[np.lexsort((keys[members], strata[members]))]
    _, starts, sizes = np.unique(strata[members], return_index=True, return_counts=True)
    ranks = np.arange(len(members)) - np.repeat(starts, sizes)
    return members[np.lexsort((keys[members], (ranks + 0.5) / np.repeat(sizes, sizes)))]

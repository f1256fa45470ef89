"""Reads a source of any size into a table of pairs with their splits and a table of quarantined rows.

The rows are read once. Valid ones go to a temporary table, and of each a few numbers stay in memory (50 bytes), from
which duplicates, conflicts and splits are decided; a second pass over the temporary table writes the selected rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jax_rele.config import DataConfig, LabelsConfig
from jax_rele.data.pairs import deduplicate
from jax_rele.data.pairs.facts import FACTS, judgement
from jax_rele.data.pairs.reading import read_source
from jax_rele.data.pairs.splits import (
    NO_SPLIT,
    divide,
    divide_folds,
    leak_error,
    query_key,
    strictest_source_splits,
)
from jax_rele.data.pairs.table import PairTable
from jax_rele.data.parquet import (
    PAIRS,
    QUARANTINE,
    ROWS,
    WRITE_OPTIONS,
    open_atomically,
    pairs_from_arrow,
    write_batches,
)
from jax_rele.data.rows import Quarantined, raw_text, text_id
from jax_rele.data.sources.shards import WITHOUT_LABEL_COLUMN, Shard, check_bad_fraction, open_source
from jax_rele.errors import UserError
from jax_rele.names import SPLITS

LEAKED, BAD = 3, 4
"""Row statuses beyond those of `deduplicate`."""

_ROWS_OF_A_PART = 1 << 20
"""Rows whose duplicates are looked for at a time."""


@dataclass(frozen=True)
class Ingested:
    """What `ingest` has written.

    Attributes:
      pairs: the pairs with their splits, in the order of the source.
      splits: [len(pairs)] indices in `SPLITS`.
      labelled: [len(pairs)] bool, which have a label.
      counts: rows that were read and that are pairs; those that were quarantined as bad (with their reasons),
        duplicates, conflicts and leaked, which are all others; shards that were empty; rows with characters that are
        not shown, which models do not read, and with HTML.
    """

    pairs: PairTable
    splits: np.ndarray
    labelled: np.ndarray
    counts: dict[str, int | dict[str, int]]


def ingest(
    data: DataConfig, labels: LabelsConfig, seed: int, cache: Path, folder: Path, processes: int | None = None
) -> Ingested:
    """Reads the source of a config, and writes `pairs.parquet` and `quarantine.parquet` into a folder.

    Every row ends as a pair, or in the quarantine with a reason: it is bad, a duplicate, in conflict with another
    judgement of the same query and item, or leaked (its query is in another given split too). This is checked in what
    was written. Of two different pairs with one `pair_id` the second is bad. Bad rows alone count towards
    `data.max_bad_fraction`.

    Args:
      data: the source and how it is read.
      labels: the label schema, and how the source writes its labels.
      seed: of the splits.
      cache: the folder of the cache.
      folder: where to write; it exists.
      processes: how many parse the rows, see `read_source`.

    Raises:
      UserError: the source cannot be read or holds no valid row, too many rows are bad, the given splits leak, or a
        split comes out empty.
    """
    shards = open_source(data, cache)
    with _quarantine(folder / "quarantine.parquet") as set_aside:
        facts, bad, reasons, counts = _spool(shards, data, labels, seed, folder / "rows.parquet", set_aside, processes)
        ids = _ids_by_text(facts, folder / "rows.parquet")
        spool = PairTable(folder / "rows.parquet")
        statuses, replacements = _row_statuses(facts, spool, data)
        n_rows, n_bad = len(statuses) + sum(bad.values()), int((statuses == BAD).sum()) + sum(bad.values())
        reason_of = partial(
            _reason, facts=facts, statuses=statuses, replacements=replacements, shards=shards, label_names=labels.names
        )
        examples = [*[*bad][:3], *map(reason_of, np.flatnonzero(statuses == BAD)[:1].tolist())]
        check_bad_fraction(n_rows, n_bad, examples, data.max_bad_fraction, data.path)
        reasons["duplicate pair_id"] += int((statuses == BAD).sum())
        is_selected = statuses == deduplicate.SELECTED
        splits = _split(facts, spool, is_selected, data)
        split_indices = np.full(len(is_selected), NO_SPLIT, np.int8)
        split_indices[is_selected] = splits

        def second_pass() -> Iterator[pa.Table]:
            for start, table in _row_groups(folder / "rows.parquet"):
                rows = slice(start, start + table.num_rows)
                for i in np.flatnonzero(~is_selected[rows]):
                    one = reason_of(start + int(i))
                    raw = {name: value for name, value in table.slice(i, 1).to_pylist()[0].items() if value is not None}
                    set_aside(Quarantined(**{**asdict(one), "raw": raw_text(raw)}))
                names = pa.array(SPLITS).take(pa.array(split_indices[rows][is_selected[rows]]))
                if ids:
                    table = _with_ids(table, start, ids)
                table = table.filter(pa.array(is_selected[rows]))
                yield table.set_column(table.schema.get_field_index("split"), PAIRS.field("split"), names)

        write_batches(folder / "pairs.parquet", second_pass(), PAIRS)
    del spool
    (folder / "rows.parquet").unlink()
    check_disjoint(folder / "pairs.parquet")
    _check_accounted(counts["rows"], folder)
    status_counts = Counter(statuses.tolist())
    notes: Counter[str] = sum((shard.notes for shard in shards), Counter())
    return Ingested(
        pairs=PairTable(folder / "pairs.parquet"),
        splits=splits,
        labelled=facts["label"][is_selected] != deduplicate.UNLABELLED,
        counts={
            "rows": {"read": counts.pop("rows"), "pairs": len(splits)},
            "quarantined": n_bad,
            **({"reasons": _most_common(reasons)} if n_bad else {}),
            "duplicates": status_counts[deduplicate.DUPLICATE],
            "conflicts": status_counts[deduplicate.CONFLICT],
            "leaked": status_counts[LEAKED],
            **counts,
            **notes,
        },
    )


def _check_accounted(n_rows: int, folder: Path) -> None:
    """Raises ValueError unless every row that was read is in one of the tables."""
    written = {name: pq.read_metadata(folder / f"{name}.parquet").num_rows for name in ("pairs", "quarantine")}
    if sum(written.values()) != n_rows:
        raise ValueError(f"{folder}: {n_rows} rows were read, but {written} written")


def _kind(reason: str) -> str:
    """What kind of reason one is: what it quotes is left out, and which attribute it is about."""
    plain = re.split("[:;(]| at | ['\"]", reason, maxsplit=1)[0].strip()
    return re.sub(r"^item\.attributes\.\S+", "item.attributes", plain)


def _most_common(kinds: Counter[str], most: int = 5) -> dict[str, int]:
    """How many rows are bad for each of the kinds of reasons, the rarer ones together."""
    common = {kind: count for kind, count in kinds.most_common(most + 1) if count and kind != "others"}
    common = dict(list(common.items())[:most])
    rarer = kinds.total() - sum(common.values())
    return common | ({"others": rarer} if rarer else {})


def check_disjoint(path: Path) -> None:
    """Raises ValueError where a normalised query is in two splits of a table of pairs."""
    key_of = lru_cache(1 << 16)(partial(query_key, seed=0))
    parts = []
    for _, table in _row_groups(path, ["query", "split"]):
        queries = table["query"].combine_chunks().dictionary_encode()
        keys = pa.array(map(key_of, queries.dictionary.to_pylist()), pa.uint64()).take(queries.indices)
        parts.append(pa.table({"key": keys, "split": table["split"]}))
    counts = pa.concat_tables(parts).group_by("key").aggregate([("split", "count_distinct")])
    if pc.any(pc.greater(counts["split_count_distinct"], 1)).as_py():
        raise ValueError(f"{path}: a query is in two splits")


def _spool(
    shards: Sequence[Shard],
    data: DataConfig,
    labels: LabelsConfig,
    seed: int,
    path: Path,
    set_aside: Callable[[Quarantined], None],
    processes: int | None,
) -> tuple[dict[str, np.ndarray], dict[Quarantined, int], Counter[str], dict[str, int]]:
    """The first pass.

    Returns:
      The facts of the valid rows; the first bad row of each reason with their number; the bad rows by kind of reason;
      other counts.
    """
    facts: dict[str, list[np.ndarray]] = {name: [] for name in (*FACTS, "shard")}
    first_bad: dict[str, Quarantined] = {}
    bad: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    seen: set[int] = set()
    counts = {"rows": 0, "rows_with_html": 0, "with_invisible_characters": 0}
    parts = read_source(
        shards,
        data.path,
        data.reading,
        label_names=labels.names,
        label_map=labels.aliases,
        with_split=data.splits.existing == "keep",
        seed=seed,
        processes=processes,
    )

    def tables() -> Iterator[pa.Table]:
        for index, part in parts:
            for number, reason, raw in part.bad:
                one = Quarantined(shards[index].name, number, reason, raw)
                set_aside(one)
                # Reasons quote values: past some hundred of them, or of their kinds, they are counted together.
                kind = _kind(reason)
                kinds[kind if kind in kinds or len(kinds) < 256 else "others"] += 1
                reason = reason if reason in bad or len(bad) < 256 else "others"
                bad[reason] += 1
                first_bad.setdefault(reason, one)
            n_rows = part.pairs.num_rows
            if n_rows or part.bad:
                seen.add(index)
            counts["rows"] += n_rows + len(part.bad)
            for name in ("rows_with_html", "with_invisible_characters"):
                counts[name] += part.counts[name]
            if part.counts[WITHOUT_LABEL_COLUMN]:
                shards[index].notes[WITHOUT_LABEL_COLUMN] += part.counts[WITHOUT_LABEL_COLUMN]
            for name, values in (*part.facts.items(), ("shard", np.full(n_rows, index, np.int32))):
                facts[name].append(values)
            yield part.pairs

    with closing(parts):
        write_batches(path, tables(), PAIRS)
    counts["empty_shards"] = len(shards) - len(seen)
    if not counts["rows_with_html"]:
        del counts["rows_with_html"]
    arrays = {name: np.concatenate(facts.pop(name)) for name in list(facts)}
    return arrays, {first_bad[reason]: count for reason, count in bad.items()}, kinds, counts


def _ids_by_text(facts: dict[str, np.ndarray], spool: Path) -> dict[int, str]:
    """Finds items with an id for those without, by their texts: one that is judged for the same query, or else the
    first one; and gives the rows the judgement of their new id.

    Returns:
      Row -> its item's id, of the rows whose item has no id of its own and for whose texts there is one.
    """
    by_text = facts["by_text"]
    if not by_text.any() or by_text.all():
        return {}
    text_ids = {
        item_id
        for start, table in _row_groups(spool, ["item"])
        for item_id in _item_ids(table.filter(pa.array(by_text[start : start + table.num_rows])))
    }
    of_query = set(facts["judgement"][by_text].tolist())
    first: dict[str, str] = {}
    judged: dict[int, str] = {}
    for start, table in _row_groups(spool):
        rows = start + np.flatnonzero(~by_text[start : start + table.num_rows])
        for row, pair in zip(rows.tolist(), pairs_from_arrow(table.take(pa.array(rows - start)))):
            if (text := text_id(pair.item)) in text_ids:
                first.setdefault(text, pair.item.id)
                if (key := judgement(int(facts["query"][row]), text, pair.locale)) in of_query:
                    judged.setdefault(key, pair.item.id)
    ids: dict[int, str] = {}
    for start, table in _row_groups(spool) if first else ():
        rows = start + np.flatnonzero(by_text[start : start + table.num_rows])
        for row, pair in zip(rows.tolist(), pairs_from_arrow(table.take(pa.array(rows - start)))):
            if pair.item.id in first:
                ids[row] = judged.get(int(facts["judgement"][row]), first[pair.item.id])
                facts["judgement"][row] = judgement(int(facts["query"][row]), ids[row], pair.locale)
    return ids


def _with_ids(table: pa.Table, start: int, ids: Mapping[int, str]) -> pa.Table:
    """The rows from `start` on, with other ids of items by row."""
    index = table.schema.get_field_index("item")
    kind = table.schema.field(index).type
    replaced = [ids.get(row, item_id) for row, item_id in enumerate(_item_ids(table), start)]
    items = table["item"].combine_chunks()
    columns = [pa.array(replaced, field.type) if field.name == "id" else items.field(field.name) for field in kind]
    return table.set_column(index, table.schema.field(index), pa.StructArray.from_arrays(columns, fields=list(kind)))


def _item_ids(table: pa.Table) -> list[str]:
    return pc.struct_field(table["item"], "id").to_pylist()


def _row_statuses(facts: dict[str, np.ndarray], spool: PairTable, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """[N] the status of each row, and [N] the row that replaces it or conflicts with it, -1 for none."""
    n_rows = len(facts["query"])
    index_type = np.int32 if n_rows < 2**30 else np.int64
    statuses, replacements = np.full(n_rows, deduplicate.SELECTED, np.int8), np.arange(n_rows, dtype=index_type)
    # Ranks of texts by their bytes are those of Python's order: by code points.
    ranks = pc.rank(spool.column("pair_id"), sort_keys="ascending", tiebreaker="dense")
    facts["rank"] = ranks.to_numpy().astype(index_type)
    del ranks
    if data.splits.existing == "ignore":
        facts["source_split"] = np.full(n_rows, NO_SPLIT, np.int8)
    facts["query_split"] = np.full(n_rows, NO_SPLIT, np.int8)
    if (facts["source_split"] != NO_SPLIT).any():
        for rows in _by_query(facts["query"]):
            facts["query_split"][rows] = strictest_source_splits(facts["query"][rows], facts["source_split"][rows])
    leaked = (facts["source_split"] != NO_SPLIT) & (facts["source_split"] != facts["query_split"])
    if leaked.any() and data.splits.leakage == "refuse":
        row = int(np.flatnonzero(leaked)[0])
        same = (facts["query"] == facts["query"][row]) & (facts["source_split"] > facts["source_split"][row])
        raise UserError(f"{data.path}: {leak_error(spool[row], spool[int(np.flatnonzero(same)[0])])}")
    statuses[leaked] = LEAKED

    is_left = ~leaked
    while True:
        for rows in _by_query(facts["query"]):
            rows = rows[is_left[rows]]
            key, label, rank, content = (facts[name][rows] for name in ("judgement", "label", "rank", "content"))
            statuses[rows], other = deduplicate.resolve(key, label, rank, content, data.conflicts)
            replacements[rows] = np.where(other < 0, -1, rows[other])
        selected = np.flatnonzero(is_left & (statuses == deduplicate.SELECTED)).astype(index_type)
        # Of several assignments to one index the last one counts: the first row with a pair_id.
        first = np.empty(n_rows + 1, index_type)
        first[facts["rank"][selected[::-1]]] = selected[::-1]
        namesakes = first[facts["rank"][selected]]
        is_second = namesakes != selected
        if not is_second.any():
            return statuses, replacements
        # Without them others stand for what they judge.
        statuses[selected[is_second]] = BAD
        replacements[selected[is_second]] = namesakes[is_second]
        is_left[selected[is_second]] = False


def _by_query(queries: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of all rows, about `_ROWS_OF_A_PART` at a time; those of one query are in one part."""
    n_parts = len(queries) // _ROWS_OF_A_PART + 1
    for part in range(n_parts):
        yield np.flatnonzero(queries % np.uint64(n_parts) == part) if n_parts > 1 else np.arange(len(queries))


def _split(facts: dict[str, np.ndarray], spool: PairTable, is_selected: np.ndarray, data: DataConfig) -> np.ndarray:
    """[selected] indices in `SPLITS`."""
    query, label, rank, source_splits = (
        facts[name][is_selected] for name in ("query", "label", "rank", "source_split")
    )
    if not len(query):
        raise UserError(f"{data.path}: no row is left after conflicts were dropped; change data.conflicts")
    if (query == query[0]).all():
        text = spool[int(np.flatnonzero(is_selected)[0])].query
        raise UserError(
            f"{data.path}: all {len(is_selected)} rows have one query, {text[:80]!r}; pairs are split by query, so "
            f"there must be at least three: add queries, or check data.fields.query"
        )
    splits = data.splits
    fractions = splits.train, splits.validation, splits.test
    if splits.fold is not None and (n_split := int((source_splits != NO_SPLIT).sum())):
        raise UserError(
            f"{data.path}: {n_split} of {len(query)} rows bring a split, and folds divide all queries anew; set "
            f"data.splits.existing to ignore to do so, or compare on the given split, without folds"
        )
    try:
        if splits.fold is not None:
            return divide_folds(query, label, rank, splits.fold, fractions)
        return divide(query, label, rank, source_splits, fractions)
    except UserError as error:
        n_leaked = int(((facts["source_split"] != NO_SPLIT) & (facts["source_split"] != facts["query_split"])).sum())
        leaked = f"; {n_leaked} rows are left out, as their queries are in a later split too (data.splits.leakage)"
        raise UserError(f"{data.path}: {error}{leaked if n_leaked else ''}") from None


def _reason(
    row: int,
    facts: dict[str, np.ndarray],
    statuses: np.ndarray,
    replacements: np.ndarray,
    shards: Sequence[Shard],
    label_names: Sequence[str],
) -> Quarantined:
    """The quarantined row with its reason."""
    source, number, other = shards[facts["shard"][row]].name, int(facts["row"][row]), replacements[row]
    where = "another row"
    if other >= 0:
        other_source = shards[facts["shard"][other]].name
        where = f"row {facts['row'][other]}" + ("" if other_source == source else f" of {other_source}")
    if statuses[row] == BAD:
        reason = f"duplicate pair_id, first seen at {where}"
    elif statuses[row] == LEAKED:
        reason = (
            f"leaked: the query is in the split {SPLITS[facts['query_split'][row]]} too (data.splits.leakage: drop)"
        )
    elif statuses[row] == deduplicate.DUPLICATE:
        reason = f"duplicate: {where} judges the same query and item and is kept"
    elif other >= 0:
        name = label_names[facts["label"][other]]
        reason = f"conflict: {where} gives the same query and item the label {name!r}, which is kept"
    else:
        reason = "conflict: the same query and item are judged differently (data.conflicts: drop)"
    return Quarantined(source, number, reason, "")


def _row_groups(path: Path, columns: list[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
    """The row groups of a table, each with the number of its first row."""
    start = 0
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.metadata.num_row_groups):
            table = file.read_row_group(group, columns=columns)
            yield start, table
            start += table.num_rows


@contextmanager
def _quarantine(path: Path) -> Iterator[Callable[[Quarantined], None]]:
    """A table of quarantined rows, written as they come."""
    buffered: list[Quarantined] = []

    def flush(writer: pq.ParquetWriter) -> None:
        writer.write_table(pa.Table.from_pylist([asdict(one) for one in buffered], schema=QUARANTINE))
        buffered.clear()

    with open_atomically(path) as file, pq.ParquetWriter(file, QUARANTINE, **WRITE_OPTIONS) as writer:

        def set_aside(one: Quarantined) -> None:
            buffered.append(one)
            if len(buffered) == ROWS:
                flush(writer)

        yield set_aside
        flush(writer)

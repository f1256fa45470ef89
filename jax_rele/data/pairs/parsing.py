"""Rows of a source as a table of pairs, with the numbers by which duplicates, conflicts and splits are decided.

Rows with the same columns are read a column at a time. A row with a value that `parse_row` would not simply take over
is read by `parse_row` itself, alone; both ways give the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from jax_rele.data.columns import has_label_column, is_object, item_columns
from jax_rele.data.pairs.by_column import find_layout, parse_columns
from jax_rele.data.pairs.facts import (
    FACTS,
    HTML,
    INVISIBLE,
    WITHOUT_LABEL_COLUMN,
    Parsing,
    facts_of_pairs,
    has_html,
    has_ignorable,
)
from jax_rele.data.parquet import PAIRS, pairs_to_arrow
from jax_rele.data.rows import RowError, parse_row, raw_text
from jax_rele.types import ITEM_FIELDS, Pair

Row = tuple[int, Mapping | RowError, object]
"""Row number, the row or what is wrong with it, and the raw row."""


@dataclass
class ParsedRows:
    """What some rows are.

    Attributes:
      pairs: a table of the valid ones, in their order, with the schema `PAIRS`.
      facts: [len(pairs)] arrays, see `FACTS`.
      bad: row number, reason and raw text of each other row, in their order.
      counts: rows with HTML, with characters that are not shown, and without a column for the label.
      columns: the columns of the rows, each combination once, up to a hundred columns; empty where a row is valid.
      first_columns: of the first row that has columns.
    """

    pairs: pa.Table
    facts: dict[str, np.ndarray]
    bad: list[tuple[int, str, str]]
    counts: Counter[str]
    columns: list[tuple[str, ...]] = field(default_factory=list)
    first_columns: tuple[str, ...] | None = None


def parse_rows(rows: Sequence[Row], parsing: Parsing) -> ParsedRows:
    """Reads rows; each is a pair or bad."""
    items = tuple(parsing.reading.fields.items())
    bad: list[tuple[int, str, str]] = []
    alone: list[int] = []
    groups: dict[tuple, list[int]] = {}
    last: tuple[str, ...] | None = None
    names: tuple[str, ...] = ()
    for index, (_, row, _) in enumerate(rows):
        if type(row) is not dict:
            alone.append(index)
            continue
        columns = tuple(row)
        if columns != last:
            last, names = columns, item_columns(items, columns)
        objects = [name for name in names if is_object(row[name])]
        if not objects:
            groups.setdefault((columns, ()), []).append(index)
        elif len(objects) == 1 and type(row[objects[0]]) is dict:
            groups.setdefault((columns, ((objects[0], *row[objects[0]]),)), []).append(index)
        else:
            alone.append(index)
    counts: Counter[str] = Counter()
    parts: list[tuple[list[int], pa.Table, dict[str, np.ndarray]]] = []
    for (columns, nested), indices in groups.items():
        layout = find_layout(items, columns, nested)
        # Ids that are hashes may be too long for texts of so few characters.
        if layout is None or 0 < parsing.reading.max_characters < 100:
            alone += indices
            continue
        group, slow = parse_columns([rows[index][1] for index in indices], layout, parsing, counts)
        alone += [indices[i] for i in slow]
        if slow:
            indices = [index for i, index in enumerate(indices) if i not in slow]
        if indices:
            table, facts = group
            parts.append((indices, table, facts))
    if alone:
        pairs: list[Pair] = []
        valid: list[int] = []
        for index in sorted(alone):
            number, row, raw = rows[index]
            pair = _parse_one(row, parsing, counts)
            if isinstance(pair, Pair):
                pairs.append(pair)
                valid.append(index)
            else:
                bad.append((number, str(pair), raw_text(raw)))
        if pairs:
            parts.append((valid, pairs_to_arrow(pairs), facts_of_pairs(pairs, parsing)))
    table, facts = _in_order(parts, [number for number, _, _ in rows])
    with_columns = [row for _, row, _ in rows if not isinstance(row, RowError)]
    return ParsedRows(
        table,
        facts,
        bad,
        counts,
        [] if table.num_rows else _combinations(with_columns),
        tuple(with_columns[0]) if with_columns else None,
    )


def _combinations(rows: Iterable[Mapping]) -> list[tuple[str, ...]]:
    combinations: dict[tuple[str, ...], None] = {}
    columns: set[str] = set()
    for row in rows:
        if len(columns) >= 100:
            break
        combinations[tuple(row)] = None
        columns.update(row)
    return list(combinations)


def _in_order(
    parts: list[tuple[list[int], pa.Table, dict[str, np.ndarray]]], numbers: Sequence[int]
) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """Tables of rows with the facts of each as one, by the indices of the rows, of which `numbers` are the numbers."""
    if not parts:
        return PAIRS.empty_table(), {name: np.zeros(0, kind) for name, kind in FACTS.items()}
    indices = np.concatenate([indices for indices, _, _ in parts])
    table, order = parts[0][1], np.arange(len(indices))
    if len(parts) > 1:
        order = np.argsort(indices)
        table = pa.concat_tables([table for _, table, _ in parts]).combine_chunks().take(pa.array(order))
    facts = {name: np.concatenate([facts[name] for _, _, facts in parts])[order] for name in FACTS if name != "row"}
    return table, facts | {"row": np.array(numbers, np.int64)[indices[order]]}


# ---- one row


def _parse_one(row: Mapping | RowError, parsing: Parsing, counts: Counter[str]) -> Pair | RowError:
    if isinstance(row, RowError):
        return row
    try:
        pair = parse_row(
            row,
            parsing.reading,
            label_map=parsing.label_map,
            label_names=parsing.label_names,
            with_split=parsing.with_split,
        )
    except RowError as error:
        return error
    if pair.label is None and not has_label_column(row, parsing.reading):
        counts[WITHOUT_LABEL_COLUMN] += 1
    texts = (pair.query, *(getattr(pair.item, name) for name in ITEM_FIELDS))
    counts[INVISIBLE] += any(map(has_ignorable, texts))
    if parsing.reading.html == "keep":
        counts[HTML] += any(map(has_html, (*texts, *(text for _, text in pair.item.attributes))))
    return replace(pair, split=parsing.default_split) if parsing.default_split and pair.split is None else pair

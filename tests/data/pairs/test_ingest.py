"""From a source to tables: every row ends once, no query is in two splits, nothing is written half."""

import json
import re
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jax_rele.config import DataConfig, LabelsConfig
from jax_rele.data import PairTable, ingest, parse_row, read_table, write_pairs
from jax_rele.data.pairs.ingest import check_disjoint
from jax_rele.errors import UserError
from jax_rele.names import SPLITS
from jax_rele.text import text_key
from jax_rele.types import Item, Pair

NAMES = ("Exact", "Substitute", "Irrelevant")
SCHEMA = LabelsConfig(names=NAMES, gains=(1.0, 0.5, 0.0), positive=("Exact",))


def run(folder, source, seed=0, **data):
    folder.mkdir(parents=True, exist_ok=True)
    result = ingest(DataConfig(path=str(source), **data), SCHEMA, seed, folder / "cache", folder)
    bad = [row["reason"].partition(":")[0] for row in read_table(folder / "quarantine.parquet").to_pylist()]
    assert sorted(path.name for path in folder.iterdir()) == ["pairs.parquet", "quarantine.parquet"]
    return result, bad


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def row(i, query, label=None, item="i", **more):
    return {"pair_id": f"p{i}", "query": query, "item": {"id": item, "title": "t"}, "label": label, **more}


def plain(n, **more):
    """One row for each of n queries."""
    return [row(i, f"query {i}", NAMES[i % 3], **more) for i in range(n)]


def refusal(tmp_path, source, **data):
    with pytest.raises(UserError) as error:
        run(tmp_path / "made", source, **data)
    assert "\n" not in str(error.value)
    return str(error.value)


spellings = st.sampled_from([str, str.upper, lambda query: f"  {query} "])


@st.composite
def sources(draw):
    """Rows of some queries, repeated, contradicted, spoilt and with splits of their own."""
    rows = []
    for i in range(draw(st.integers(8, 30))):
        query = draw(spellings)(f"query {draw(st.integers(0, 9))}")
        label = draw(st.sampled_from([None, *NAMES]))
        rows.append(row(i, query, label, item=draw(st.sampled_from("ab")), locale=draw(st.sampled_from(["", "us"]))))
        kind = draw(st.integers(0, 11))
        if kind == 0:
            rows[-1]["label"] = "none of these"
        elif kind == 1:
            rows[-1]["pair_id"] = "p0"
        elif kind in (2, 3):
            rows[-1]["split"] = draw(st.sampled_from(SPLITS))
        elif kind == 4:
            del rows[-1]["pair_id"]
    return rows


def attempt(folder, rows, **options):
    """What comes of the rows and the reasons of those set aside; None where they are too few for a run."""
    source = write(folder / "rows.jsonl", rows)
    try:
        return run(folder / "made", source, max_bad_fraction=1.0, **options)
    except UserError as error:
        message = str(error)
    assert any(reason in message for reason in ("is empty", "one query", "no row is left", "none of its"))
    return None


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(sources(), st.sampled_from(["majority", "first", "last", "drop"]), st.sampled_from(["keep", "ignore"]))
def test_every_row_ends_once_and_no_query_is_in_two_splits(tmp_path_factory, rows, conflicts, split_rule):
    folder = tmp_path_factory.mktemp("ingest")
    options = {"splits": {"existing": split_rule, "leakage": "drop"}, "conflicts": conflicts}
    attempted = attempt(folder, rows, **options)
    if attempted is None:
        return
    result, bad = attempted
    pairs = list(result.pairs)
    counts = result.counts
    assert len(pairs) + len(bad) == len(rows)
    assert len(bad) == sum(counts[name] for name in ("quarantined", "duplicates", "conflicts", "leaked"))
    reasons = Counter(bad)
    assert counts["quarantined"] == reasons["unknown label 'none of these'"] + sum(
        count for reason, count in reasons.items() if reason.startswith("duplicate pair_id")
    )
    assert [counts["duplicates"], counts["conflicts"], counts["leaked"]] == [
        reasons[name] for name in ("duplicate", "conflict", "leaked")
    ]
    set_aside = read_table(folder / "made" / "quarantine.parquet").to_pylist()
    assert len({(one["source"], one["row"]) for one in set_aside}) == len(set_aside)
    # No row twice, no pair twice, no query in two splits.
    assert len({pair.pair_id for pair in pairs}) == len(pairs)
    judged = {(text_key(pair.query), pair.item.id, pair.locale) for pair in pairs}
    assert len(judged) == len(pairs)
    splits = {(text_key(pair.query), pair.split) for pair in pairs}
    assert len(splits) == len({query for query, _ in splits})
    assert [SPLITS[index] for index in result.splits] == [pair.split for pair in pairs]
    assert result.labelled.tolist() == [pair.label is not None for pair in pairs]
    # What is kept is as it was read, in its order.
    numbers = {one["row"] for one in set_aside}
    selected = [parse_row(one, label_map={}, label_names=NAMES) for i, one in enumerate(rows, 1) if i not in numbers]
    assert [replace(pair, split=None) for pair in pairs] == [replace(pair, split=None) for pair in selected]
    again, _ = attempt(folder, rows, **options)
    assert list(again.pairs) == pairs


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(sources(), st.sampled_from(["majority", "drop"]), st.randoms())
def test_the_order_of_rows_changes_nothing(tmp_path_factory, rows, conflicts, shuffler):
    rows = [one for one in rows if one.get("pair_id") != "p0" or one is rows[0]]
    results = []
    for part in (rows, shuffler.sample(rows, len(rows))):
        attempted = attempt(tmp_path_factory.mktemp("ingest"), part, splits={"leakage": "drop"}, conflicts=conflicts)
        results.append(attempted and (sorted(attempted[0].pairs, key=lambda pair: pair.pair_id), attempted[0].counts))
    assert results[0] == results[1]


def test_spellings_of_a_locale_are_one_judgement(tmp_path):
    spelled = [row(20 + i, "query 0", NAMES[0], locale=name) for i, name in enumerate(("en_US", "en-us", "EN US"))]
    rows = [*plain(12), *spelled, row(30, "query 0", NAMES[0], locale="us"), row(31, "query 0", NAMES[1], locale="US")]
    result, _ = run(tmp_path / "made", write(tmp_path / "rows.jsonl", rows))
    assert (result.counts["duplicates"], result.counts["conflicts"]) == (2, 1)
    assert sorted(pair.locale for pair in result.pairs if pair.locale) == ["US", "en_US"]


def test_who_wins_is_told(tmp_path):
    rows = plain(12)
    rows += [row(20, "QUERY  0", "Irrelevant"), row(21, "query 0", "Irrelevant"), row(22, "query 1", "Substitute")]
    result, _ = run(tmp_path / "made", write(tmp_path / "rows.jsonl", rows))
    assert result.counts.pop("rows") == {"read": 15, "pairs": 12}
    expected = {"quarantined": 0, "duplicates": 2, "conflicts": 1, "leaked": 0, "empty_shards": 0}
    assert result.counts == expected | {"with_invisible_characters": 0}
    quarantined = {one["row"]: one for one in read_table(tmp_path / "made" / "quarantine.parquet").to_pylist()}
    assert {number: one["reason"] for number, one in quarantined.items()} == {
        1: "conflict: row 13 gives the same query and item the label 'Irrelevant', which is kept",
        14: "duplicate: row 13 judges the same query and item and is kept",
        15: "duplicate: row 2 judges the same query and item and is kept",
    }
    assert json.loads(quarantined[1]["raw"])["pair_id"] == "p0"
    assert {one["source"] for one in quarantined.values()} == {str(tmp_path / "rows.jsonl")}


def test_leaks_are_refused_or_dropped(tmp_path):
    rows = plain(9, split="train") + [row(20 + i, f"held {i}", "Exact", split=SPLITS[1 + i % 2]) for i in range(4)]
    rows += [row(30, "Query 0", "Exact", item="j", split="test"), row(31, "query 0", "Exact", item="k")]
    rows += [row(32, "query 0", "Exact", item="l", split="validation")]
    source = write(tmp_path / "rows.jsonl", rows)
    message = refusal(tmp_path, source)
    assert f"{source}: the query 'query 0' is in two splits: test (pair_id 'p30') and train (pair_id 'p0')" in message
    assert "data.splits.leakage" in message
    result, bad = run(tmp_path / "dropped", source, splits={"leakage": "drop"})
    assert bad == ["leaked", "leaked"]
    assert result.counts["leaked"] == 2
    assert {pair.pair_id for pair in result.pairs if pair.split == "test" and "uery" in pair.query} == {"p30", "p31"}
    result, _ = run(tmp_path / "ignored", source, splits={"existing": "ignore"})
    assert (len(result.pairs), result.counts["leaked"]) == (len(rows), 0)


def test_the_share_of_bad_rows_does_not_count_duplicates(tmp_path):
    rows = plain(10) * 5 + [{"query": "no title"}]
    source = write(tmp_path / "rows.jsonl", rows)
    result, _ = run(tmp_path / "made", source, max_bad_fraction=0.02)
    assert (result.counts["duplicates"], result.counts["quarantined"]) == (40, 1)
    assert "1 of 51 rows are bad (2.0%), more than data.max_bad_fraction 1.0% (row 51 of " in refusal(
        tmp_path, source, max_bad_fraction=0.01
    )
    rows = [*plain(10), row(3, "another query"), row(3, "a third")]
    source = write(tmp_path / "ids.jsonl", rows)
    message = refusal(tmp_path, source, max_bad_fraction=0.1)
    assert "2 of 12 rows are bad" in message
    assert "duplicate pair_id, first seen at row 4" in message


def test_one_query_in_all_rows_is_said(tmp_path):
    source = write(tmp_path / "rows.jsonl", [row(i, "Red  Shoe", "Exact", item=str(i)) for i in range(5000)])
    message = refusal(tmp_path, source)
    assert message.startswith(f"{source}: all 5000 rows have one query, 'Red  Shoe'; pairs are split by query")


def test_empty_shards_are_counted(tmp_path):
    for i in range(12):
        write(tmp_path / "in" / f"{i:02d}.jsonl", plain(12)[i : i + 1] if i % 2 else [])
    result, _ = run(tmp_path / "made", tmp_path / "in")
    assert (len(result.pairs), result.counts["empty_shards"]) == (6, 6)
    for path in (tmp_path / "in").iterdir():
        path.write_text("")
    assert "none of the 12 files has a row" in refusal(tmp_path, tmp_path / "in")


def test_more_rows_than_a_row_group(tmp_path):
    rows = [row(i, f"query {i % 700}", NAMES[i % 3], item=str(i)) for i in range(9000)]
    rows += [{"query": str(i)} for i in range(4200)]
    result, bad = run(tmp_path / "made", write(tmp_path / "rows.jsonl", rows), max_bad_fraction=0.5)
    assert len(bad) == 4200
    assert [pair.pair_id for pair in result.pairs] == [f"p{i}" for i in range(9000)]
    metadata = pq.ParquetFile(tmp_path / "made" / "pairs.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [4096, 4096, 808]
    counts = Counter(pair.split for pair in result.pairs)
    assert np.allclose([counts[split] / 9000 for split in SPLITS], (0.6, 0.2, 0.2), atol=0.01)


def test_a_long_text_is_in_no_table(tmp_path):
    rows = [*plain(12), row(20, "long", "Exact", item="x" * 10_000_000)]
    result, bad = run(tmp_path / "made", write(tmp_path / "rows.jsonl", rows))
    assert (len(result.pairs), bad) == (12, ["a text of 10000000 characters, more than data.max_characters 100000"])
    assert sum(path.stat().st_size for path in (tmp_path / "made").iterdir()) < 50_000


def test_a_leak_in_what_was_written_is_found(tmp_path):
    def pair(i, query, split):
        return Pair(str(i), query, Item("i", "t"), split=split)

    path = tmp_path / "pairs.parquet"
    pairs = [pair(i, f"q{i}", SPLITS[i % 3]) for i in range(9)]
    write_pairs(path, [*pairs, pair(9, "Q1", "validation")])
    check_disjoint(path)
    write_pairs(path, [*pairs, pair(9, "Q1 ", "test")])
    with pytest.raises(ValueError, match="a query is in two splits"):
        check_disjoint(path)


def test_what_fails_leaves_no_table(tmp_path, monkeypatch):
    source = write(tmp_path / "rows.jsonl", plain(12))
    output = tmp_path / "made"
    output.mkdir()
    monkeypatch.setattr(PairTable, "column", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(output, source)
    assert "pairs.parquet" not in {path.name for path in output.iterdir()}


def test_splits_are_checked_in_what_was_written(tmp_path, monkeypatch):
    rows = [row(i, f"query {i % 6}", NAMES[i % 3], item=str(i)) for i in range(24)]
    monkeypatch.setattr(
        sys.modules["jax_rele.data.pairs.ingest"], "divide", lambda query, *_: np.arange(len(query)) // 8
    )
    with pytest.raises(ValueError, match="a query is in two splits"):
        run(tmp_path / "made", write(tmp_path / "rows.jsonl", rows))


def test_the_folds_test_every_row_once_and_ignore_given_splits_only_where_they_may(tmp_path):
    rows = [row(i, f"query {i % 12}", NAMES[i % 3], item=f"i{i}") for i in range(40)]
    source = write(tmp_path / "pairs.jsonl", rows)
    tested = Counter()
    for number in range(1, 4):
        result, _ = run(tmp_path / str(number), source, splits={"fold": (number, 3)})
        tested.update(pair.pair_id for pair, split in zip(result.pairs, result.splits) if SPLITS[split] == "test")
    assert tested == {f"p{i}": 1 for i in range(40)}
    source = write(tmp_path / "split.jsonl", [{**rows[0], "split": "test"}, *rows[1:]])
    with pytest.raises(UserError, match=r"1 of 40 rows bring a split, and folds .* set data.splits.existing to ignore"):
        run(tmp_path / "refused", source, splits={"fold": (1, 3)})
    result, _ = run(tmp_path / "ignored", source, splits={"fold": (1, 3), "existing": "ignore"})
    assert set(result.splits) == {0, 1, 2}
    with pytest.raises(UserError, match=r"split.jsonl: 13 folds need as many queries, there are 12"):
        run(tmp_path / "many", source, splits={"fold": (1, 13), "existing": "ignore"})


def test_rows_that_were_read_are_rows_that_were_written(tmp_path):
    rows = [
        *plain(20),
        {"query": ""},
        row(40, "query 1", "nonsense"),
        row(41, "query 2", "Exact", item="i"),
        row(0, "x"),
    ]
    result, bad = run(tmp_path / "made", write(tmp_path / "rows.jsonl", rows), max_bad_fraction=0.5)
    counts = result.counts
    assert counts["rows"] == {"read": 24, "pairs": len(result.pairs)}
    assert counts["reasons"] == {"missing item": 1, "unknown label": 1, "duplicate pair_id": 1}
    others = sum(counts[name] for name in ("quarantined", "duplicates", "conflicts", "leaked"))
    assert len(result.pairs) + others == 24
    assert len(bad) == others


def test_a_row_that_is_lost_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("jax_rele.data.pairs.ingest.check_disjoint", lambda path: write_pairs(path, []))
    with pytest.raises(ValueError, match="12 rows were read, but"):
        run(tmp_path / "made", write(tmp_path / "rows.jsonl", plain(12)))


def test_ids_that_a_table_made_floats_are_the_same_ids(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    columns = {"query": [f"query {i}" for i in range(12)], "title": [f"t {i}" for i in range(12)]}
    columns["label"] = [NAMES[i % 3] for i in range(12)]
    ids = list(range(1000, 1012))
    pq.write_table(pa.table({**columns, "item_id": ids}), folder / "a.parquet")
    pq.write_table(pa.table({**columns, "item_id": [None, *map(float, ids[1:])]}), folder / "b.parquet")
    result, _ = run(tmp_path / "made", folder)
    assert result.counts["duplicates"] == 12
    assert len(result.pairs) == 12


def test_html_is_counted_or_becomes_text(tmp_path):
    rows = plain(12)
    rows[0]["item"]["title"] = "Bath &amp; <b>Body</b>"
    source = write(tmp_path / "rows.jsonl", rows)
    result, _ = run(tmp_path / "kept", source)
    assert result.counts["rows_with_html"] == 1
    result, _ = run(tmp_path / "text", source, html="text")
    assert "rows_with_html" not in result.counts
    assert "Bath & Body" in {pair.item.title for pair in result.pairs}


def test_a_judgement_is_not_lost_with_a_row_whose_id_is_another_pairs(tmp_path):
    rows = [
        *plain(9),
        {**row(20, "q2", NAMES[0], "B")},
        {**row(20, "q1", NAMES[1], "A")},
        {**row(21, "q1", NAMES[1], "A")},
        {**row(22, "q1", NAMES[2], "A")},
    ]
    result, bad = run(tmp_path / "made", write(tmp_path / "in.jsonl", rows), max_bad_fraction=1.0)
    selected = {(pair.pair_id, pair.query) for pair in result.pairs}
    assert {("p20", "q2"), ("p22", "q1")} <= selected or {("p20", "q2"), ("p21", "q1")} <= selected
    assert sorted(bad) == ["conflict", "duplicate pair_id, first seen at row 10"]
    reasons = [each["reason"] for each in read_table(tmp_path / "made" / "quarantine.parquet").to_pylist()]
    named = {number for reason in reasons for number in map(int, re.findall(r"row (\d+)", reason))}
    assert named <= {10, 12, 13}  # rows that are selected


def test_only_ids_that_were_made_of_texts_are_taken_for_such(tmp_path):
    item = {"title": "Trail runner"}
    mine = [row(21, "q", NAMES[0]) | {"item": item | {"id": "item-5"}}, row(22, "q", NAMES[2]) | {"item": item}]
    result, bad = run(tmp_path / "made", write(tmp_path / "in.jsonl", [*plain(9), *mine]), max_bad_fraction=1.0)
    assert bad == ["conflict"]
    assert result.counts["conflicts"] == 1


def test_an_item_without_an_id_has_that_of_its_texts_for_every_query(tmp_path):
    shoe, boot = ({"title": title, "brand": "Acme"} for title in ("Trail runner", "Boot"))
    rows = [
        *plain(9),
        {"query": "red shoe", "item": shoe, "label": NAMES[0]},
        {"query": "blue boot", "item": shoe | {"id": "B1"}, "label": NAMES[2]},
        {"query": "old boot", "item": boot, "label": NAMES[2]},
    ]
    result, bad = run(tmp_path / "made", write(tmp_path / "in.jsonl", rows))
    ids = {pair.query: pair.item.id for pair in result.pairs}
    assert bad == []
    assert ids["red shoe"] == ids["blue boot"] == "B1"
    assert re.fullmatch("item-[0-9a-f]{20}", ids["old boot"])


def test_reasons_are_counted_by_kind_whatever_they_quote(tmp_path):
    unknown = [row(1000 + i, f"u{i}", f"L{i}" if i % 2 else f"it's {i} at (x)") for i in range(300)]
    blank = [row(2000 + i, " ", NAMES[0]) for i in range(30)]
    source = write(tmp_path / "in.jsonl", [*plain(9), *unknown, *blank])
    result, _ = run(tmp_path / "made", source, max_bad_fraction=1.0)
    assert result.counts["reasons"] == {"unknown label": 300, "blank query": 30}


def test_an_item_without_an_id_is_first_the_one_that_is_judged_for_its_query(tmp_path):
    def judged(query, label, **ids):
        return {"query": query, "item": {"title": "Trail runner", **ids}, "label": label}

    rows = [*plain(9), judged("a", NAMES[0], id="A"), judged("b", NAMES[0], id="B"), judged("b", NAMES[1])]
    result, bad = run(tmp_path / "made", write(tmp_path / "in.jsonl", rows))
    assert (len(result.pairs), bad) == (11, ["conflict"])


@pytest.mark.parametrize("conflicts", ["majority", "drop"])
def test_an_id_counts_as_twice_only_where_both_rows_are_pairs(tmp_path, conflicts):
    same = [row(31, "qa", NAMES[0], "i1"), row(30, "qa", NAMES[0] if conflicts == "majority" else NAMES[1], "i1")]
    rows = [*plain(9), *same, row(31, "qb", NAMES[1], "i2")]
    result, bad = run(tmp_path / "made", write(tmp_path / "in.jsonl", rows), conflicts=conflicts)
    assert ("p31", "qb") in {(pair.pair_id, pair.query) for pair in result.pairs}
    assert bad == (["duplicate"] if conflicts == "majority" else ["conflict"] * 2)


def test_kinds_of_reasons_have_a_bound(tmp_path):
    items = [{"id": "i", "title": "t", "attributes": {f"k{i}": {"a": 1}}} for i in range(600)]
    rows = [row(100 + i, f"q{i}", NAMES[0]) | {"item": item} for i, item in enumerate(items)]
    result, _ = run(tmp_path / "made", write(tmp_path / "in.jsonl", [*plain(9), *rows]), max_bad_fraction=1.0)
    assert result.counts["reasons"] == {"item.attributes must be text, got dict": 600}
    rows = [row(100 + i, f"q{i}", NAMES[0], title="x" * (200 + i)) for i in range(600)]
    rows = [one | {"item": one["item"] | {"title": one.pop("title")}} for one in rows]
    source = write(tmp_path / "long.jsonl", [*plain(9), *rows])
    reasons = run(tmp_path / "long", source, max_bad_fraction=1.0, max_characters=100)[0].counts["reasons"]
    assert (sum(reasons.values()), len(reasons)) == (600, 6)


@pytest.mark.parametrize("conflicts", ["majority", "first", "last", "drop"])
def test_the_parts_by_query_do_not_change_the_result(conflicts, tmp_path, monkeypatch):
    rows = [row(i % 190, f"query {i % 23}", [None, *NAMES][i % 4], item=f"i{i % 7}") for i in range(200)]
    rows += [row(200 + i, f"query {i % 9}", NAMES[0], split=SPLITS[i % 2]) for i in range(18)]
    source = write(tmp_path / "rows.jsonl", rows)
    contents = []
    for part in (1 << 20, 20):
        monkeypatch.setattr("jax_rele.data.pairs.ingest._ROWS_OF_A_PART", part)
        options = {"conflicts": conflicts, "splits": {"leakage": "drop"}, "max_bad_fraction": 1.0}
        result, bad = run(tmp_path / f"{part}", source, **options)
        assert {"conflict", "leaked"} <= set(bad)
        contents.append([result.counts, *(path.read_bytes() for path in sorted((tmp_path / f"{part}").iterdir()))])
    assert contents[0] == contents[1]

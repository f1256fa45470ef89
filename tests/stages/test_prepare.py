"""prepare: all of its tables or none, from any source, with candidates of training queries alone."""

import errno
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jax_rele import config
from jax_rele.data import PairTable, read_pairs_table, read_table
from jax_rele.data import parquet as tables
from jax_rele.data.tokens import tokenizers
from jax_rele.errors import UserError
from jax_rele.runs import layout
from jax_rele.stages import prepare
from jax_rele.text import text_key

LABELS = ("Exact", "Substitute", "Complement", "Irrelevant")
PAIRS = ["pairs.parquet", "quarantine.parquet", "unlabelled.parquet"]


def rows(n_queries=40, items=3, **more):
    return [
        {
            "pair_id": f"p{q}-{i}",
            "query": f"red shoe {q}",
            "item": {"id": f"i{q}-{i}", "title": f"Shoe {q} {i}", "brand": f"b{q % 4}", "category": f"c{q % 3}"},
            "label": LABELS[(q + i) % 4] if i else None,
            **more,
        }
        for q in range(n_queries)
        for i in range(items)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def settings_of(tmp_path, path, **data):
    vocab = {"random": {"vocab_size": 320}}
    values = {"name": "r", "run_root": str(tmp_path / "runs"), "data": {"path": str(path), **data}}
    settings = config.from_dict({**values, "teacher": vocab, "student": vocab})
    return settings, prepare.run(settings, settings.run_dir)


def stage_dir(tmp_path):
    return tmp_path / "runs" / "r" / "prepare"


def test_tables_and_counts(tmp_path):
    source = write(tmp_path / "rows.jsonl", [*rows(), rows()[0], {"query": "q"}])
    settings, counts = settings_of(tmp_path, source, candidates={"per_query": 4})
    assert sorted(os.listdir(stage_dir(tmp_path))) == PAIRS
    pairs = read_pairs_table(settings.run_dir / layout.PAIRS)
    assert len(pairs) == 120
    labelled = {split: [pair for pair in pairs if pair.split == split and pair.label] for split in counts["pairs"]}
    assert counts == {
        "pairs": {split: len(labelled[split]) for split in ("train", "validation", "test")},
        "unlabelled": 24 * 5,
        "rows": {"read": 122, "pairs": 120},
        "reasons": {"missing item": 1},
        "quarantined": 1,
        "duplicates": 1,
        "conflicts": 0,
        "leaked": 0,
        "empty_shards": 0,
        "with_invisible_characters": 0,
    }
    assert counts["pairs"] == {"train": 48, "validation": 16, "test": 16}
    assert len(read_table(settings.run_dir / layout.QUARANTINE)) == 2
    # Unlabelled are those of the data and the candidates; all are of training queries, none is judged.
    unlabelled = PairTable(settings.run_dir / layout.UNLABELLED)
    of_split = {text_key(pair.query): pair.split for pair in pairs}
    assert {of_split[text_key(pair.query)] for pair in unlabelled} == {"train"}
    assert [pair.pair_id for pair in unlabelled[:24]] == [
        pair.pair_id for pair in pairs if pair.label is None and pair.split == "train"
    ]
    judged = {(text_key(pair.query), pair.item.id) for pair in pairs}
    crossed = unlabelled[24:]
    assert not judged & {(text_key(pair.query), pair.item.id) for pair in crossed}
    held_out = {pair.item for pair in pairs if pair.split != "train"}
    assert not held_out & {pair.item for pair in crossed}


def test_a_second_run_makes_the_same(tmp_path):
    source = write(tmp_path / "rows.jsonl", rows())
    settings_of(tmp_path, source)
    before = {path: path.read_bytes() for path in stage_dir(tmp_path).rglob("*") if path.is_file()}
    settings_of(tmp_path, source)
    assert {path: path.read_bytes() for path in stage_dir(tmp_path).rglob("*") if path.is_file()} == before


def test_without_candidates(tmp_path):
    _, counts = settings_of(tmp_path, write(tmp_path / "rows.jsonl", rows()), candidates={"per_query": 0})
    assert counts["unlabelled"] == 24


def test_tokenizers_are_trained_on_a_sample_of_many_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizers, "TOKENIZER_PAIRS", 7)
    settings, _ = settings_of(tmp_path, write(tmp_path / "rows.jsonl", rows()))
    train = [pair for pair in read_pairs_table(settings.run_dir / layout.PAIRS) if pair.split == "train"]
    pairs = PairTable(settings.run_dir / layout.PAIRS)
    selected = tokenizers.sample_pairs(pairs.select(np.array([pair.split == "train" for pair in pairs])))
    assert list(selected) == [train[i * len(train) // 7] for i in range(7)]


def test_official_train_and_test_get_a_validation_split(tmp_path):
    source = rows()
    for row in source:
        row["split"] = "test" if int(row["pair_id"][1:].split("-")[0]) < 10 else "train"
    _, counts = settings_of(tmp_path, write(tmp_path / "rows.jsonl", source))
    assert counts["pairs"] == {"train": 44, "validation": 16, "test": 20}


@pytest.mark.parametrize(
    ("source", "data", "message"),
    [
        (rows(n_queries=1), {}, "all 3 rows have one query, 'red shoe 0'"),
        (rows(items=1), {}, "the label is empty in every row; fill it, or name another column in data.fields"),
        ([*rows(), *[{"query": "q"}] * 60], {}, "60 of 180 rows are bad"),
        (rows(label="none"), {}, "none of its 120 rows is a valid pair"),
        (rows(split="train"), {"splits": {"train": 0.5, "validation": 0.5, "test": 0}}, "the test split is empty"),
    ],
)
def test_what_cannot_be_prepared_leaves_nothing(tmp_path, source, data, message):
    with pytest.raises(UserError, match=message) as error:
        settings_of(tmp_path, write(tmp_path / "rows.jsonl", source), **data)
    assert "\n" not in str(error.value)
    assert os.listdir(stage_dir(tmp_path)) == []


@pytest.mark.parametrize("after", range(1, 6))
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, after):
    """Whichever of the writes meets it: what was written is taken away, and the next run starts afresh."""
    source = write(tmp_path / "rows.jsonl", rows())
    fsync, done = os.fsync, []

    def full(descriptor):
        done.append(descriptor)
        if len(done) == after:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(tables.os, "fsync", full)
    with pytest.raises(UserError, match=r"the disk is full; make room") as error:
        settings_of(tmp_path, source)
    assert "\n" not in str(error.value)
    assert os.listdir(stage_dir(tmp_path)) == []
    settings_of(tmp_path, source)
    assert sorted(os.listdir(stage_dir(tmp_path))) == PAIRS


def test_what_a_kill_left_is_removed(tmp_path):
    left = stage_dir(tmp_path) / ".making-abc"
    left.mkdir(parents=True)
    (left / "rows.parquet").write_bytes(b"PAR1")
    settings_of(tmp_path, write(tmp_path / "rows.jsonl", rows()))
    assert sorted(os.listdir(stage_dir(tmp_path))) == PAIRS


def test_inputs_change_with_the_content_of_the_source(tmp_path):
    source = write(tmp_path / "rows.jsonl", rows())
    settings = config.from_dict({"name": "r", "data": {"path": str(source)}})
    before = prepare.external_inputs(settings)
    assert before == prepare.external_inputs(settings)
    assert list(before) == [f"data.path {source.name}"]
    write(source, rows(n_queries=41))
    assert prepare.external_inputs(settings) != before


def test_candidates_stay_within_a_locale(tmp_path):
    both = [row for name in ("us", "jp") for row in rows(30, locale=name)]
    for row, index in zip(both, range(len(both))):
        row["pair_id"], row["item"] = f"p{index}", {**row["item"], "id": f"{row['locale']}-{row['item']['id']}"}
    settings, _ = settings_of(tmp_path, write(tmp_path / "rows.jsonl", both), candidates={"per_query": 6})
    error = [pair for pair in read_pairs_table(settings.run_dir / layout.UNLABELLED) if pair.pair_id[:2] == "x-"]
    assert {pair.locale for pair in error} == {"us", "jp"}
    assert all(pair.item.id.startswith(f"{pair.locale}-") for pair in error)
    assert len({pair.pair_id for pair in error}) == len(error)


def test_spellings_of_a_locale_share_their_candidates(tmp_path):
    spelled = [{**row, "locale": ("us", "US")[i % 2]} for i, row in enumerate(rows(30, locale="us"))]
    drawn = []
    for name, judged in (("same", rows(30, locale="us")), ("spelled", spelled)):
        (tmp_path / name).mkdir()
        source = write(tmp_path / name / "rows.jsonl", judged)
        settings, _ = settings_of(tmp_path / name, source, candidates={"per_query": 6})
        pairs = read_pairs_table(settings.run_dir / layout.UNLABELLED)
        drawn.append({(pair.query, pair.item.id) for pair in pairs if pair.pair_id[:2] == "x-"})
    assert drawn[0] == drawn[1] != set()


@pytest.mark.parametrize("name", ["relevance", "grade", "score", "judgment"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_a_label_column_of_another_name_is_asked_for(tmp_path, name, suffix):
    table = [{"query": f"q {i}", "title": f"t {i}", name: LABELS[i % 4]} for i in range(30)]
    source = tmp_path / f"pairs{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(table), source)
    elif suffix == ".jsonl":
        write(source, table)
    else:
        mark = "," if suffix == ".csv" else "\t"
        source.write_text("\n".join(mark.join(cells) for cells in [list(table[0]), *(row.values() for row in table)]))
    settings = config.from_dict({"data": {"path": str(source)}, "run_root": str(tmp_path)})
    message = (
        rf"pairs{suffix}: no column holds the label; the columns are \['query', 'title', '{name}'\]; name the right"
    )
    with pytest.raises(UserError, match=message):
        prepare.run(settings, settings.run_dir)
    mapped = settings.model_copy(update={"data": settings.data.model_copy(update={"fields": {"label": name}})})
    assert sum(prepare.run(mapped, mapped.run_dir)["pairs"].values()) == 30

"""Another teacher's rows become signals, and what cannot be one is named with its row and the mend."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jax_rele.data import read_external_signals, write_signals
from jax_rele.errors import UserError
from jax_rele.rationale import find_evidence, parse, render
from jax_rele.types import Comparison, Item, LabelSchema, Pair, Rationale, Span

FOUR = LabelSchema(("Exact", "Substitute", "Complement", "Irrelevant"), (1.0, 0.1, 0.01, 0.0), ("Exact",))
TWO = LabelSchema(("bad", "good"), (0.0, 1.0), ("good",))
DIMENSIONS = ("category", "color")
PAIRS = [Pair(name, "red shoes", Item(name, "crimson boots")) for name in "abc"]
TEXT = "category: shoes | boots | mismatch\ncolor: red | crimson | match\nlabel: Substitute"


def read(path, schema=FOUR, pairs=PAIRS):
    return read_external_signals(path, pairs, schema=schema, dimensions=DIMENSIONS, fields=("title",))


def write(folder, *rows, name="signals.jsonl"):
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("columns", "probs"),
    [
        ({"label_probs": [0.1, 0.2, 0.3, 0.4]}, [0.1, 0.2, 0.3, 0.4]),
        ({"label_probs": {"Irrelevant": 0.25, "Exact": 0.75}}, [0.75, 0, 0, 0.25]),
        ({"label": "Complement"}, [0, 0, 1, 0]),
        ({"rationale": TEXT}, [0, 1, 0, 0]),
        ({"label": "Irrelevant", "rationale": TEXT}, [0, 0, 0, 1]),
        ({"label_probs": [0.5, 0.5, 0, 0], "label": "Irrelevant", "rationale": TEXT}, [0.5, 0.5, 0, 0]),
    ],
)
@pytest.mark.parametrize("name", ["signals.jsonl", "signals.parquet"])
def test_the_label_distribution_comes_from_the_first_that_is_given(tmp_path, name, columns, probs):
    result = read(write(tmp_path, {"pair_id": "b", **columns}, name=name))
    assert result.signals.pair_ids == ("b",)
    np.testing.assert_allclose(result.signals.label_probs, [probs], atol=1e-7)


@given(st.floats(0, 1))
def test_a_score_is_the_chance_of_the_positive_label(tmp_path_factory, score):
    path = write(tmp_path_factory.mktemp("s"), {"pair_id": "a", "score": score})
    np.testing.assert_allclose(read(path, TWO).signals.label_probs, [[1 - score, score]], atol=1e-6)


def test_a_rationale_gives_verdicts_and_evidence(tmp_path):
    result = read(
        write(tmp_path, {"pair_id": "a", "rationale": f"Let me think.\n- {TEXT}"}, {"pair_id": "b", "label": "Exact"})
    )
    signals = result.signals
    np.testing.assert_array_equal(signals.verdict_probs[0], [[0, 1, 0], [1, 0, 0]])
    assert set(signals.evidence[0]) == {
        Span("query", 4, 9, "category"),
        Span("title", 8, 13, "category"),
        Span("query", 0, 3, "color"),
        Span("title", 0, 7, "color"),
    }
    assert parse(signals.rationales[0]).label == "Substitute"
    assert np.isnan(signals.verdict_probs[1]).all()
    assert (signals.evidence[1], signals.rationales[1]) == ((), "")
    assert (result.rationales, result.unparsed) == (1, 0)


values = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5).map(lambda text: (text,))
sides = st.just(()) | values
rationales = st.builds(
    lambda *parts: Rationale(tuple(Comparison(d, *part) for d, part in zip(DIMENSIONS, parts[:2])), parts[2]),
    *[st.tuples(sides, sides, st.sampled_from(["match", "mismatch", "absent"]))] * 2,
    st.sampled_from(FOUR.names),
)


@given(rationales)
def test_what_the_grammar_writes_is_kept(tmp_path_factory, rationale):
    comparisons = [(c.query_values, c.item_values, c.verdict) for c in rationale.comparisons]
    assume(any(part != ((), (), "absent") for part in comparisons))
    result = read(write(tmp_path_factory.mktemp("s"), {"pair_id": "a", "rationale": render(rationale, "label_first")}))
    again = parse(result.signals.rationales[0])
    assert [comparison.verdict for comparison in again.comparisons] == [c.verdict for c in rationale.comparisons]
    assert again.label == rationale.label
    assert result.signals.evidence[0] == find_evidence(PAIRS[0], again, ("title",))


def test_comparisons_without_a_label_take_that_of_the_row(tmp_path):
    path = write(tmp_path, {"pair_id": "a", "label": "Exact", "rationale": TEXT.rpartition("\n")[0]})
    assert read(path).signals.rationales == (TEXT.replace("Substitute", "Exact"),)


def test_a_label_alone_is_no_rationale(tmp_path):
    """Nobody compared anything: no verdict is learned from it, and not that there is no evidence."""
    signals = read(write(tmp_path, {"pair_id": "a", "rationale": "label: Exact"})).signals
    np.testing.assert_array_equal(signals.label_probs, [[1, 0, 0, 0]])
    assert np.isnan(signals.verdict_probs).all()
    assert (signals.rationales, signals.evidence) == (("",), ((),))


def test_a_rationale_that_does_not_parse_is_counted_where_the_row_says_more(tmp_path):
    result = read(write(tmp_path, {"pair_id": "a", "label": "Exact", "rationale": "no idea | at | all"}))
    assert (result.unparsed, result.rationales, result.signals.rationales) == (1, 1, ("",))
    assert result.first_unparsed.startswith("row 1: ")
    with pytest.raises(
        UserError, match=r"row 1 \(pair_id 'a'\): a row needs .*; its rationale gives none \(no label\)"
    ):
        read(write(tmp_path, {"pair_id": "a", "rationale": "no idea"}))


@pytest.mark.parametrize("name", ["signals.jsonl", "signals.parquet"])
def test_verdicts_stand_for_themselves_and_before_the_rationale(tmp_path, name):
    row = {"pair_id": "a", "label": "Exact"}
    hard = read(write(tmp_path, {**row, "verdicts": {"color": "absent"}}, name=name)).signals.verdict_probs
    np.testing.assert_array_equal(hard, [[[np.nan] * 3, [0, 0, 1]]])
    soft = {"verdict_probs": {"category": [0.5, 0.25, 0.25], "color": None}}
    both = read(write(tmp_path, {**row, **soft, "rationale": TEXT}, name=name)).signals.verdict_probs
    np.testing.assert_array_equal(both, [[[0.5, 0.25, 0.25], [1, 0, 0]]])


def test_confidence_and_embedding(tmp_path):
    signals = read(
        write(
            tmp_path,
            {"pair_id": "b", "label": "Exact", "confidence": 0.25, "rationale_embedding": [1, 2.5]},
            {"pair_id": 7, "label": "Exact", "confidence": None, "rationale_embedding": None},
        ),
        pairs=[*PAIRS, Pair("7", "q", Item("7", "t"))],
    ).signals
    assert signals.pair_ids == ("b", "7")
    np.testing.assert_array_equal(signals.confidence, [0.25, 1])
    np.testing.assert_array_equal(signals.rationale_embedding, [[1, 2.5], [np.nan] * 2])


def test_other_pairs_and_columns_are_counted(tmp_path):
    rows = [{"pair_id": name, "label": "Exact", "model": "gpt", "note": 1} for name in "xay"]
    result = read(write(tmp_path, *rows))
    assert (result.signals.pair_ids, result.others, result.unread) == (("a",), 2, ("model", "note"))


def test_a_table_of_signals_is_read_as_it_is(tmp_path):
    rows = [{"pair_id": name, "rationale": TEXT, "confidence": 0.5} for name in "axb"]
    signals = read(write(tmp_path, *rows), pairs=[*PAIRS, Pair("x", "q", Item("x", "t"))]).signals
    write_signals(tmp_path / "table.parquet", signals, FOUR.names, DIMENSIONS)
    result = read(tmp_path / "table.parquet")
    assert (result.signals.pair_ids, result.others, result.rationales) == (("a", "b"), 1, 2)
    assert result.signals.evidence == (signals.evidence[0], signals.evidence[2])
    with pytest.raises(UserError, match=r"table\.parquet: the signals are for the labels \['Exact'"):
        read(tmp_path / "table.parquet", TWO)


def test_compressed_lines(tmp_path):
    path = tmp_path / "signals.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"pair_id": "a", "label": "Exact"}\n'))
    assert read(path).signals.pair_ids == ("a",)


NAN = float("nan")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "a row needs label_probs, score, label or a rationale with its label; it has none of them"),
        ({"label": "Great"}, r"label says 'Great', which is not one of the labels \['Exact', .*; use these names"),
        ({"label": ["Exact"]}, "label says .*which is not one of the labels"),
        ({"label_probs": {"Great": 1.0}}, "label_probs says 'Great', which is not one of the labels"),
        ({"label_probs": [0.5, 0.5]}, r"label_probs must hold 4 numbers, for \['Exact'"),
        ({"label_probs": "Exact"}, "label_probs must hold 4 numbers"),
        ({"label_probs": [NAN, 1, 0, 0]}, "label_probs hold a NaN: .*; leave them out"),
        ({"label_probs": [None, 1, 0, 0]}, "label_probs hold a NaN"),
        ({"label_probs": [-0.5, 1.5, 0, 0]}, "label_probs hold a negative number: .*; give probabilities"),
        ({"label_probs": [0.5, 0.6, 0, 0]}, "label_probs sum to 1.1, not to 1: .*; divide them by their sum"),
        ({"label_probs": {"Exact": 0.5}}, "label_probs sum to 0.5, not to 1"),
        ({"label_probs": ["1", 0, 0, 0]}, "label_probs must be numbers, got '1'"),
        ({"label_probs": [True, 0, 0, 0]}, "label_probs must be numbers, got True"),
        ({"score": 0.5}, "a score says all only of two labels, the config has 4; give label_probs"),
        ({"label": "Exact", "rationale": 7}, "rationale must be text in the grammar, got int"),
        (
            {"label": "Exact", "verdicts": {"size": "match"}},
            r"verdicts says 'size', which is not one of the dimensions",
        ),
        ({"label": "Exact", "verdicts": {"color": "yes"}}, "the verdict on 'color' says 'yes', which is not one of"),
        ({"label": "Exact", "verdicts": ["match"]}, "verdicts must map dimensions"),
        ({"label": "Exact", "verdict_probs": {"color": [1, 1, 0]}}, "verdict_probs of 'color' sum to 2"),
        ({"label": "Exact", "verdict_probs": {"color": [1, 0]}}, "verdict_probs of 'color' must hold 3 numbers"),
        ({"label": "Exact", "verdict_probs": {"hue": [1, 0, 0]}}, "verdict_probs says 'hue'"),
        ({"label": "Exact", "verdicts": {}, "verdict_probs": {}}, "both verdicts and verdict_probs; leave one out"),
        ({"label": "Exact", "confidence": 1.5}, r"confidence must lie in \[0, 1\], got 1.5"),
        ({"label": "Exact", "confidence": NAN}, r"confidence must lie in \[0, 1\], got nan"),
        ({"label": "Exact", "confidence": "high"}, "confidence must be numbers, got 'high'"),
        ({"label": "Exact", "rationale_embedding": []}, "rationale_embedding must be a list of numbers"),
        ({"label": "Exact", "rationale_embedding": [NAN]}, "rationale_embedding holds a number that is not finite"),
        ({"label": "Exact", "rationale_embedding": [1, 2]}, "holds 2 numbers, that of row 1 1; all must be of one"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    good = {"pair_id": "a", "label": "Exact", "rationale_embedding": [1.0]}
    path = write(tmp_path, good, {"pair_id": "b", **row})
    with pytest.raises(UserError, match=rf"signals\.jsonl row 2 \(pair_id 'b'\): .*{message}") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("score", [-0.1, 1.1, NAN])
def test_a_score_outside_zero_and_one_is_named(tmp_path, score):
    with pytest.raises(UserError, match=r"row 1 \(pair_id 'a'\): score must lie in \[0, 1\]"):
        read(write(tmp_path, {"pair_id": "a", "score": score}), TWO)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"pair_id": "a", "label": "Ex'], "row 1: not valid JSON"),
        (["[1]"], "row 1: must be a JSON object"),
        ([{"label": "Exact"}], "row 1: missing pair_id"),
        ([{"pair_id": True, "label": "Exact"}], "row 1: missing pair_id"),
        ([{"pair_id": "a", "label": "Exact"}] * 2, r"row 2 \(pair_id 'a'\): the pair is in row 1 too; keep one"),
        ([{"pair_id": "x", "label": "Exact"}] * 2, r"row 2 \(pair_id 'x'\): the pair is in row 1 too"),
        ([], "the file has no rows"),
    ],
)
def test_bad_files_are_named(tmp_path, rows, message):
    with pytest.raises(UserError, match=rf"signals\.jsonl:? {message}"):
        read(write(tmp_path, *rows))


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: no such file of signals"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"signals\.csv: unknown suffix; signals are read from \.jsonl"):
        read(write(tmp_path, name="signals.csv"))
    (tmp_path / "signals.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"signals\.parquet: no Parquet file"):
        read(tmp_path / "signals.parquet")

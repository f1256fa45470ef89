"""Signals survive the table exactly, and what no student should learn from is refused."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jax_rele.data import read_signals, take_signals, validate_signals, write_signals
from jax_rele.data.signals.table import iter_signals
from jax_rele.errors import UserError
from jax_rele.types import Signals, Span

LABELS = ("Exact", "Substitute", "Irrelevant")
DIMENSIONS = ("category", "brand")


@st.composite
def signals(draw, dimensions=DIMENSIONS):
    n = draw(st.integers(0, 5))
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)

    def distributions(*shape):
        counts = draw(hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
        counts[..., 0] += 1e-3
        return counts / counts.sum(-1, keepdims=True)

    verdicts = distributions(n, len(dimensions), 3)
    verdicts[draw(hnp.arrays(bool, (n, len(dimensions))))] = np.nan
    spans = st.builds(
        lambda source, start, length, dimension: Span(source, start, start + length, dimension),
        st.sampled_from(["query", "title"]),
        st.integers(0, 100),
        st.integers(1, 9),
        st.sampled_from(dimensions or ["?"]),
    )
    spans = st.lists(spans, max_size=3 if dimensions else 0).map(tuple)
    embedding = draw(st.none() | hnp.arrays(np.float32, (n, 3), elements=st.floats(-9, 9, width=32)))
    if embedding is not None:
        embedding[draw(hnp.arrays(bool, n))] = np.nan
    return Signals(
        pair_ids=tuple(draw(st.lists(text, min_size=n, max_size=n, unique=True))),
        label_probs=distributions(n, len(LABELS)),
        verdict_probs=verdicts,
        evidence=tuple(draw(st.lists(spans, min_size=n, max_size=n))),
        rationales=tuple(draw(st.lists(text, min_size=n, max_size=n))),
        confidence=draw(hnp.arrays(np.float32, n, elements=st.floats(0, 1, width=32))),
        rationale_embedding=embedding,
    )


def three():
    return Signals(
        pair_ids=("a", "b", "c"),
        label_probs=np.array([[0.5, 0.25, 0.25], [1, 0, 0], [0.1, 0.2, 0.7]]),
        verdict_probs=np.array([[[1, 0, 0], [0, 0.5, 0.5]], [[np.nan] * 3] * 2, [[0, 1, 0], [np.nan] * 3]]),
        evidence=((Span("query", 0, 3, "brand"),), (), (Span("title", 2, 5, "category"), Span("query", 0, 1, "brand"))),
        rationales=("one", "", "three"),
    )


def check_equal(one, two):
    assert (one.pair_ids, one.evidence, one.rationales) == (two.pair_ids, two.evidence, two.rationales)
    np.testing.assert_array_equal(one.label_probs, two.label_probs)
    np.testing.assert_array_equal(one.verdict_probs, two.verdict_probs)
    np.testing.assert_array_equal(one.confidence, two.confidence)
    # Whether there is no embedding, or one of NaNs for each pair, is the same thing said twice.
    vectors = [signals.rationale_embedding for signals in (one, two)]
    empty = [vector is None or bool(np.isnan(vector).all()) for vector in vectors]
    assert empty[0] == empty[1]
    if not empty[0]:
        np.testing.assert_array_equal(*vectors)


@pytest.mark.parametrize("dimensions", [DIMENSIONS, ()])
@given(data=st.data())
def test_signals_survive_exactly(tmp_path_factory, dimensions, data):
    written = data.draw(signals(dimensions))
    path = tmp_path_factory.mktemp("signals") / "signals.parquet"
    write_signals(path, written, LABELS, dimensions)
    read = read_signals(path, LABELS, dimensions)
    check_equal(read, written)
    assert read.label_probs.dtype == read.verdict_probs.dtype == np.float32
    assert read.verdict_probs.shape == (len(written.pair_ids), len(dimensions), 3)


def test_the_table_has_the_documented_columns(tmp_path):
    write_signals(tmp_path / "s.parquet", three(), LABELS, DIMENSIONS)
    table = pq.read_table(tmp_path / "s.parquet")
    columns = ["pair_id", "label_probs", "verdict_probs", "evidence", "rationale", "confidence", "rationale_embedding"]
    assert table.column_names == columns
    assert table.schema.field("label_probs").type == pa.list_(pa.float32())
    rows = table.to_pylist()
    assert rows[0]["label_probs"] == [0.5, 0.25, 0.25]
    assert rows[0]["verdict_probs"] == [[1, 0, 0], [0, 0.5, 0.5]]
    assert [row["verdict_probs"] for row in rows[1:]] == [None, [[0, 1, 0], None]]
    assert rows[0]["evidence"] == [{"source": "query", "start": 0, "end": 3, "dimension": "brand"}]


def test_confidence_and_embedding_may_be_null_or_lack_altogether(tmp_path):
    path = tmp_path / "s.parquet"
    signals_without_embedding = replace(
        three(), confidence=np.array([0.5, 1, 0]), rationale_embedding=np.array([[1.0, 2.0], [np.nan] * 2, [3.0, 4.0]])
    )
    write_signals(path, signals_without_embedding, LABELS, DIMENSIONS)
    rows = pq.read_table(path).to_pylist()
    assert [row["rationale_embedding"] for row in rows] == [[1, 2], None, [3, 4]]
    assert [row["confidence"] for row in rows] == [0.5, 1, 0]
    rewrite(path, "confidence", [0.5, None, 0.25])
    np.testing.assert_array_equal(read_signals(path, LABELS, DIMENSIONS).confidence, [0.5, 1, 0.25])
    pq.write_table(pq.read_table(path).drop_columns(["confidence", "rationale_embedding"]), path)
    read = read_signals(path, LABELS, DIMENSIONS)
    np.testing.assert_array_equal(read.confidence, np.ones(3))
    assert read.rationale_embedding is None


@given(signals(), st.data())
def test_taking_rows_takes_all_that_is_said_of_them(whole, data):
    rows = data.draw(st.lists(st.integers(0, len(whole.pair_ids) - 1), unique=True) if whole.pair_ids else st.just([]))
    selected = take_signals(whole, rows)
    validate_signals(selected, LABELS, DIMENSIONS)
    assert selected.pair_ids == tuple(whole.pair_ids[row] for row in rows)
    for new, row in enumerate(rows):
        for name in ("label_probs", "verdict_probs", "confidence", "rationale_embedding"):
            if getattr(whole, name) is not None:
                np.testing.assert_array_equal(getattr(selected, name)[new], getattr(whole, name)[row])
        assert (selected.evidence[new], selected.rationales[new]) == (whole.evidence[row], whole.rationales[row])


def changed(name, index, value):
    array = getattr(three(), name).copy()
    array[index] = value
    return replace(three(), **{name: array})


BAD = [
    (
        changed("label_probs", (1, 0), np.nan),
        r"row 2 \(pair_id 'b'\): label_probs hold a NaN: .*; score the pair again",
    ),
    (changed("label_probs", (2, 0), -0.1), r"row 3 \(pair_id 'c'\): label_probs hold a negative number"),
    (changed("label_probs", (2, 0), 0.102), r"row 3 \(pair_id 'c'\): label_probs do not sum to 1"),
    (changed("label_probs", (2, 0), np.inf), r"row 3 \(pair_id 'c'\): label_probs do not sum to 1"),
    (changed("label_probs", 1, [1.5, -0.5, 0]), r"row 2 \(pair_id 'b'\): label_probs hold a negative number"),
    (changed("verdict_probs", (0, 1, 2), np.nan), r"row 1 \(pair_id 'a'\): verdict_probs of 'brand' hold a NaN"),
    (changed("verdict_probs", (2, 0), [-1, 2, 0]), r"row 3 .*: verdict_probs of 'category' hold a negative number"),
    (changed("verdict_probs", (2, 0), 0), r"row 3 .*: verdict_probs of 'category' do not sum to 1"),
    (replace(three(), pair_ids=("a", "b", "a")), r"row 3 \(pair_id 'a'\): the pair_id is in row 1 too; keep one"),
    (
        changed("confidence", 1, np.nan),
        r"row 2 \(pair_id 'b'\): confidence must lie in \[0, 1\], got nan; leave it out",
    ),
    (changed("confidence", 2, 1.5), r"row 3 \(pair_id 'c'\): confidence must lie in \[0, 1\], got 1.5"),
    (replace(three(), confidence=np.ones(2)), r"3 pairs need confidence of shape \(3,\)"),
    (replace(three(), rationale_embedding=np.ones((2, 4))), r"rationale_embedding of shape \(3, width\)"),
    (
        replace(three(), rationale_embedding=np.array([[1, 2], [np.nan, 1], [0, 1]])),
        r"row 2 \(pair_id 'b'\): rationale_embedding holds a number that is not finite",
    ),
    (replace(three(), rationales=("a", "b")), "3 pairs need"),
    (replace(three(), evidence=((),) * 4), "3 pairs need"),
    (replace(three(), label_probs=np.full((3, 2), 0.5)), r"of shapes \(3, 3\) and \(3, 2, 3\)"),
    (replace(three(), verdict_probs=np.full((3, 3, 3), np.nan)), r"of shapes \(3, 3\) and \(3, 2, 3\)"),
    *(
        (replace(three(), evidence=((), (span,), ())), r"row 2 \(pair_id 'b'\): evidence Span.* needs 0 <= start < end")
        for span in (Span("query", 3, 3, "brand"), Span("query", -1, 3, "brand"), Span("query", 0, 3, "size"))
    ),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_bad_signals_are_refused_and_not_written(tmp_path, bad, message):
    with pytest.raises(UserError, match=rf"^signals.*{message}") as error:
        validate_signals(bad, LABELS, DIMENSIONS)
    assert "\n" not in str(error.value)
    path = tmp_path / "s.parquet"
    with pytest.raises(UserError, match=rf"s\.parquet.*{message}"):
        write_signals(path, bad, LABELS, DIMENSIONS)
    assert not path.exists()


def test_rounding_is_tolerated():
    validate_signals(changed("label_probs", (2, 0), 0.1009), LABELS, DIMENSIONS)


def test_other_labels_or_dimensions_are_refused(tmp_path):
    path = tmp_path / "s.parquet"
    write_signals(path, three(), LABELS, DIMENSIONS)
    for labels in (LABELS[::-1], LABELS[:2], (*LABELS, "x")):
        with pytest.raises(UserError, match=r"s\.parquet: the signals are for the labels .* run the score stage again"):
            read_signals(path, labels, DIMENSIONS)
    for dimensions in (DIMENSIONS[::-1], DIMENSIONS[:1], (*DIMENSIONS, "x")):
        with pytest.raises(UserError, match=r"s\.parquet: the signals are for the dimensions \['category', 'brand'\]"):
            read_signals(path, LABELS, dimensions)


def rewrite(path, column, values):
    """Puts other values into a table of signals, behind the back of `write_signals`."""
    table = pq.read_table(path)
    at = table.column_names.index(column)
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type)), path)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("pair_id", ["a", "b", "b"], r" row 3 \(pair_id 'b'\): the pair_id is in row 2 too"),
        ("label_probs", [[1, 0, 0], [1, 0], [0, 0, 1]], " row 2: label_probs must hold 3 numbers"),
        ("label_probs", [[1, 0, 0], [1, 0, 0], None], " row 3: label_probs must hold 3 numbers"),
        ("label_probs", [[1, 0, 0], [1, 0, 0], [1, None, 0]], r" row 3 \(pair_id 'c'\): label_probs hold a NaN"),
        ("label_probs", [[1, 0, 0], [1, 0, 0], [1, 1, 0]], r" row 3 \(pair_id 'c'\): label_probs do not sum to 1"),
        (
            "verdict_probs",
            [None, [[1, 0, 0]], None],
            " row 2: verdict_probs must hold 3 numbers for each of 2 dimensions",
        ),
        ("verdict_probs", [None, None, [[1, 0], None]], " row 3: verdict_probs must hold 3 numbers"),
        ("confidence", [1, -1, 1], r" row 2 \(pair_id 'b'\): confidence must lie in"),
        ("rationale_embedding", [None, [1, 2], [1]], " row 3: rationale_embedding holds 1 numbers, that of row 2 2"),
        ("rationale_embedding", [[], None, []], " row 1: rationale_embedding holds 0 numbers"),
        ("rationale_embedding", [[1, None], None, None], r" row 1 \(pair_id 'a'\): rationale_embedding holds a number"),
        ("verdict_probs", [None, None, [[1, 0, None], None]], r" row 3 .*: verdict_probs of 'category' hold a NaN"),
    ],
)
def test_spoilt_tables_are_refused_on_reading(tmp_path, column, values, message):
    path = tmp_path / "s.parquet"
    write_signals(path, three(), LABELS, DIMENSIONS)
    rewrite(path, column, values)
    with pytest.raises(UserError, match=rf"s\.parquet{message}"):
        read_signals(path, LABELS, DIMENSIONS)


def test_absent_evidence_and_rationales_are_empty(tmp_path):
    path = tmp_path / "s.parquet"
    write_signals(path, three(), LABELS, DIMENSIONS)
    rewrite(path, "evidence", [None] * 3)
    rewrite(path, "rationale", [None] * 3)
    read = read_signals(path, LABELS, DIMENSIONS)
    assert (read.evidence, read.rationales) == (((),) * 3, ("",) * 3)


def test_a_table_that_does_not_say_its_labels(tmp_path):
    path = tmp_path / "s.parquet"
    write_signals(path, three(), LABELS, DIMENSIONS)
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(UserError, match=r"s\.parquet: the table does not say its labels"):
        read_signals(path, LABELS, DIMENSIONS)


def one_of(count):
    probs = np.random.default_rng(0).dirichlet(np.ones(3), (count, 2)).astype(np.float32)
    probs[::3] = np.nan
    return Signals(
        tuple(f"p{n}" for n in range(count)),
        np.random.default_rng(1).dirichlet(np.ones(3), count).astype(np.float32),
        probs,
        tuple((Span("title", 0, 1 + n, "brand"),) * (n % 2) for n in range(count)),
        tuple(f"brand: {n}" for n in range(count)),
        confidence=np.linspace(0, 1, count, dtype=np.float32),
    )


@pytest.mark.parametrize("count", [1, 7, 40, 99])
def test_parts_are_the_whole_table(tmp_path, count):
    write_signals(tmp_path / "s.parquet", one_of(40), LABELS, DIMENSIONS)
    whole, start = read_signals(tmp_path / "s.parquet", LABELS, DIMENSIONS), 0
    for part in iter_signals(tmp_path / "s.parquet", LABELS, DIMENSIONS, count):
        rows = range(start, start + len(part.pair_ids))
        expected, start = take_signals(whole, rows), rows.stop
        assert 0 < len(rows) <= count
        assert (part.pair_ids, part.evidence, part.rationales) == (
            expected.pair_ids,
            expected.evidence,
            expected.rationales,
        )
        for name in ("label_probs", "verdict_probs", "confidence"):
            np.testing.assert_array_equal(getattr(part, name), getattr(expected, name))
    assert start == 40


def test_a_part_that_cannot_be_learnt_from_is_refused(tmp_path):
    write_signals(tmp_path / "s.parquet", one_of(4), LABELS, DIMENSIONS)
    with pytest.raises(UserError, match="the signals are for the labels"):
        next(iter_signals(tmp_path / "s.parquet", ("Good", "Fair", "Bad"), DIMENSIONS, 2))
    with pytest.raises(UserError, match="no such file"):
        next(iter_signals(tmp_path / "nowhere.parquet", LABELS, DIMENSIONS, 2))
    table = pq.read_table(tmp_path / "s.parquet")
    column = table.schema.get_field_index("label_probs")
    bad = pa.array([[1, 0, 0], [0, 1, 0], [0.9, 0.9, 0], [0, 0, 1]], table.schema.field(column).type)
    pq.write_table(table.set_column(column, table.schema.field(column), bad), tmp_path / "bad.parquet")
    parts = iter_signals(tmp_path / "bad.parquet", LABELS, DIMENSIONS, 2)
    assert next(parts).pair_ids == ("p0", "p1")
    with pytest.raises(UserError, match="label_probs do not sum to 1"):
        next(parts)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "s.parquet").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cut\.parquet"):
        list(iter_signals(tmp_path / "cut.parquet", LABELS, DIMENSIONS, 2))

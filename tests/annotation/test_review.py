"""The table of decisions loses nothing; what a person edits is read row by row, or refused with its row."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.annotation.answers import Failure
from jax_rele.annotation.review import (
    COLUMNS,
    DECISIONS,
    Review,
    apply_reviews,
    decisions_from_arrow,
    decisions_to_arrow,
    read_reviews,
    to_review,
    write_reviews,
)
from jax_rele.annotation.votes import Vote, consensus, digest
from jax_rele.errors import UserError
from jax_rele.types import Comparison, Item, LabelSchema, Pair, Rationale

LABELS = LabelSchema(("Exact", "Substitute", "Irrelevant"), (1.0, 0.1, 0.0), ("Exact",))
NASTY = ['=HYPERLINK("x")', "'quoted'", "+1", "-2", "@x", 'a "b", c\nd;e', "\u2028", " padded ", "中文"]


def rationale_(label, verdict="match"):
    return Rationale((Comparison("brand", ("=a",), ("b|;",), verdict),), label)


def votes_of(**outcomes):
    return {
        p: [Vote(p, m, rationale_(o) if isinstance(o, str) else o) for m, o in zip("ab", each)]
        for p, each in outcomes.items()
    }


VOTES = votes_of(
    agreed=("Exact", "Exact"),
    split=("Exact", "Irrelevant"),
    gold=("Exact", "Exact"),
    none=(Failure("empty"), Failure("refusal")),
)
PAIRS = {p: Pair(p, "a query", Item("i", "a title")) for p in VOTES}


def decide(votes=VOTES):
    return consensus(votes, LABELS, ["brand"], gold={"gold": "Irrelevant"}, weights="equal", min_vote_fraction=0.6)


@pytest.fixture
def edit(tmp_path):
    """Writes the table of all decisions, with cells replaced: {pair_id: (decision, label)}."""

    def edit(fields, delimiter=",", encoding="utf-8-sig", decisions=None, pairs=PAIRS):
        path = tmp_path / "review.csv"
        path.unlink(missing_ok=True)
        write_reviews(path, decide() if decisions is None else decisions, pairs)
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["decision"], row["label"] = fields.get(row["pair_id"], ("", ""))
        with open(path, "w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        return path

    return edit


def test_decisions_survive_the_table():
    decisions = decide()
    table = decisions_to_arrow(decisions)
    assert table.schema == DECISIONS
    assert decisions_from_arrow(table) == decisions
    assert digest(decisions_from_arrow(table)) == digest(decisions)


def test_the_hash_sees_every_field():
    decisions = decide()
    assert digest(decisions[1:]) != digest(decisions)
    other = decide({**VOTES, "agreed": votes_of(agreed=("Exact", "Substitute"))["agreed"]})
    assert digest(other) != digest(decisions)


def test_what_a_person_should_see_comes_closest_first():
    assert [each.pair_id for each in to_review(decide())] == ["split", "gold", "none"]


def test_an_untouched_table_says_nothing(edit):
    assert read_reviews(edit({}), LABELS.names, PAIRS) == []


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_a_person_wrote_is_read_and_applied(edit, delimiter):
    fields = {
        "split": ("accept", "substitute"),
        "none": ("Reject", ""),
        "gold": ("", "Irrelevant"),
        "agreed": ("accept", ""),
    }
    reviews = read_reviews(edit(fields, delimiter), LABELS.names, PAIRS)
    assert set(reviews) == {
        Review("split", True, "Substitute"),
        Review("none", False),
        Review("gold", True, "Irrelevant"),
        Review("agreed", True),
    }
    after = {each.pair_id: each for each in apply_reviews(decide(), reviews, VOTES)}
    assert {p: (d.status, d.label, d.reviewed) for p, d in after.items()} == {
        "split": ("accepted", "Substitute", True),
        "none": ("rejected", None, True),
        "gold": ("accepted", "Irrelevant", True),
        "agreed": ("accepted", "Exact", True),
    }
    assert after["split"].rationale == rationale_("Substitute")
    assert after["gold"].gold_agrees is True
    assert to_review(after.values()) == []


def test_pairs_without_a_review_stay_as_they_are():
    decisions = decide()
    after = apply_reviews(decisions, [Review("split", True, "Exact")], VOTES)
    assert [a for a, b in zip(after, decisions) if a.pair_id != "split"] == [
        b for b in decisions if b.pair_id != "split"
    ]
    with pytest.raises(UserError, match="'none', which has no readable answer"):
        apply_reviews(decisions, [Review("none", True, "Exact")], VOTES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gold": ("maybe", "")}, "row 3: the decision 'maybe' is not one of accept, reject"),
        ({"split": ("accept", "Exakt")}, "row 5: the label 'Exakt' is not one of Exact, Substitute, Irrelevant"),
        ({"split": ("reject", "Exact")}, "row 5: has a label although it is rejected"),
    ],
)
def test_a_wrong_row_is_named(edit, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        read_reviews(edit(changes), LABELS.names, PAIRS)
    assert "\n" not in str(caught.value)


def test_wrong_tables_are_named(edit, tmp_path):
    path = edit({"gold": ("accept", "")})
    with pytest.raises(UserError, match=r"row 3: the pair 'gold' is unknown"):
        read_reviews(path, LABELS.names, ["split"])
    path.write_text(path.read_text("utf-8-sig") + "gold,,,,,,,,reject,\n", "utf-8")
    with pytest.raises(UserError, match=r"row 6: the pair 'gold' is decided in row 3 already"):
        read_reviews(path, LABELS.names)
    path.write_text("pair_id,decision\na,accept\n")
    with pytest.raises(UserError, match="has no column 'label'"):
        read_reviews(path, LABELS.names)
    path.write_text("pair_id,decision,label\na,accept,Exact,more\n")
    with pytest.raises(UserError, match="row 2: has 4 cells for 3 columns"):
        read_reviews(path, LABELS.names)
    path.write_bytes("pair_id,decision,label\n中,accept,\n".encode("gb18030"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_reviews(path, LABELS.names)
    with pytest.raises(UserError, match="cannot be read"):
        read_reviews(tmp_path / "none.csv", LABELS.names)
    with pytest.raises(UserError, match="is there already"):
        write_reviews(path, [], {})


@given(
    st.lists(
        st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=("Cs",)), min_size=1), min_size=1, unique=True
    )
)
def test_no_text_runs_as_a_formula_or_moves_a_cell(tmp_path_factory, texts):
    texts = [text for text in texts if text.strip("\x00")]
    path = tmp_path_factory.mktemp("r") / "review.csv"
    votes = {text: [Vote(text, "a", rationale_("Exact"))] for text in texts}
    write_reviews(path, decide(votes), {text: Pair(text, text, Item("i", text)) for text in texts})
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == len(texts) + 1
    for row in rows:
        assert len(row) == len(COLUMNS)
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)
    content = path.read_text("utf-8-sig")
    # All accepted, by hand.
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([rows[0], *([*row[:-2], "accept", ""] for row in rows[1:])])
    assert content
    assert {review.pair_id for review in read_reviews(path, LABELS.names, texts)} == set(texts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('pair_id,title,decision,label\np0,"bad,reject,\np1,t,reject,\n', "row 2: unexpected end of data"),
        ('pair_id,title,decision,label\np0,"bad,reject,\np1,"t",reject,\n', "row 2: "),
        ('pair_id,title,decision,label\np0,"bad\np1,t",reject\n', "row 2: has 3 cells for 4 columns"),
        ("pair_id,decision,label,Decision\np0,reject,,accept\n", "names the column 'decision' twice"),
        ("pair_id,decision,label,label\np0,accept,Exact,\n", "names the column 'label' twice"),
    ],
)
def test_a_table_that_loses_a_decision_is_refused(tmp_path, text, message):
    path = tmp_path / "review.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_reviews(path, LABELS.names)
    assert f"{path}: {message}" in str(error.value)
    assert "\n" not in str(error.value)

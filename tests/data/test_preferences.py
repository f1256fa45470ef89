"""Preferences: what a file may hold, and what is made of a teacher's samples."""

import gzip
import json

import pytest

from jax_rele.data.preferences import Preference, make_preferences, read_preferences, write_preferences
from jax_rele.errors import UserError
from jax_rele.rationale import ParseFailure, render
from jax_rele.types import Comparison, Item, Pair, Rationale, Rule

LABELS, DIMENSIONS = ("Exact", "Irrelevant"), ("brand", "color")
PAIR = Pair("1", "red shoes", Item("B", "Acme; red | shoes"), label="Exact")


def rationale(label, brand="match", color="match"):
    return Rationale((Comparison("brand", ("a|b",), ("-",), brand), Comparison("color", verdict=color)), label)


GOOD, WEAK, BAD = rationale("Exact"), rationale("Exact", "absent"), rationale("Irrelevant", "mismatch")
ROW = {"pair_id": "1", "chosen": render(GOOD), "rejected": render(BAD)}


def write(tmp_path, *rows):
    path = tmp_path / "preferences.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return path


def test_what_is_written_is_read(tmp_path):
    preferences = [Preference("1", GOOD, BAD, "étiquette\u2028"), Preference("2", GOOD, WEAK)]
    write_preferences(tmp_path / "a.jsonl", preferences)
    assert read_preferences(tmp_path / "a.jsonl", {"1", "2"}, LABELS, DIMENSIONS) == preferences


def test_lines_of_a_side_may_be_in_any_order_and_the_reason_may_be_missing(tmp_path):
    path = write(tmp_path, ROW | {"chosen": render(GOOD, "label_first"), "pair_id": 1}, "")
    assert read_preferences(path, {"1"}, LABELS, DIMENSIONS) == [Preference("1", GOOD, BAD)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW | {"rejected": ROW["chosen"]}, "chosen and rejected are equal"),
        (ROW | {"rejected": render(GOOD, "label_first")}, "chosen and rejected are equal"),
        (ROW | {"pair_id": "7"}, "there is no pair '7'"),
        (ROW | {"rejected": "too dear"}, "rejected is no rationale in the grammar .line 1: expected"),
        (ROW | {"chosen": "label: Fine"}, "chosen must have one of the labels Exact, Irrelevant, got 'Fine'"),
        (ROW | {"chosen": ""}, "chosen must have one of the labels Exact, Irrelevant, got None"),
        ({"pair_id": "1", "chosen": ROW["chosen"]}, "rejected is missing or no text"),
        (ROW | {"pair_id": None}, "pair_id is missing or no text"),
        (ROW | {"pair_id": True}, "pair_id must be text, got bool"),
        (ROW | {"pair_id": 9}, "the pair '9' is held out for evaluation"),
        (ROW | {"why": ""}, "unknown field 'why'; a preference has pair_id"),
        ("[]", "is no JSON object"),
        ("{", "is no JSON .Expecting property name"),
        ('{"pair_id":' + "[" * 100_000, "is nested too deep"),
        (ROW | {"reason": "\ud800"}, "is no valid Unicode text"),
        (
            ROW | {"chosen": "size: a | b | match\nlabel: Exact"},
            "chosen compares 'size'; the dimensions are brand, color",
        ),
        (ROW | {"rejected": "\n".join(reversed(ROW["chosen"].splitlines()))}, "chosen and rejected are equal"),
        ('{"pair_id": ' + "1" * 5000 + "}", "is nested too deep, or has a number of thousands of digits"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    with pytest.raises(UserError, match=rf"preferences.jsonl, line 2: {message}") as error:
        read_preferences(write(tmp_path, ROW, row), {"1"}, LABELS, DIMENSIONS, {"9"})
    assert "\n" not in str(error.value)


def test_a_compressed_file_is_read(tmp_path):
    path = write(tmp_path, ROW)
    packed = tmp_path / "preferences.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_preferences(packed, {"1"}, LABELS, DIMENSIONS) == [Preference("1", GOOD, BAD)]
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"jsonl\.gz: cannot be read"):
        read_preferences(packed, {"1"}, LABELS, DIMENSIONS)


def test_files_without_preferences_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no preference"):
        read_preferences(write(tmp_path, ""), {"1"}, LABELS, DIMENSIONS)
    with pytest.raises(UserError, match="cannot be read"):
        read_preferences(tmp_path / "none.jsonl", {"1"}, LABELS, DIMENSIONS)


def of_pair(*drawn, reference=None):
    references = None if reference is None else [reference]
    return make_preferences([PAIR], [drawn], references)


def test_the_right_label_is_preferred():
    assert of_pair(BAD, WEAK, GOOD) == (
        [Preference("1", WEAK, BAD, "label")],
        {"label": 1, "verdicts": 0, "ties": 0, "disputed": 0, "unreadable": 0},
    )


def test_verdicts_are_compared_where_labels_agree():
    expected = [Preference("1", GOOD, BAD, "label"), Preference("1", GOOD, WEAK, "verdicts")]
    assert of_pair(BAD, WEAK, GOOD, reference=GOOD) == (
        expected,
        {"label": 1, "verdicts": 1, "ties": 0, "disputed": 0, "unreadable": 0},
    )


@pytest.mark.parametrize("drawn", [(), (GOOD, GOOD), (BAD, rationale("Irrelevant")), (GOOD, ParseFailure("cut"))])
def test_samples_of_one_kind_are_ties(drawn):
    unreadable = sum(isinstance(each, ParseFailure) for each in drawn)
    counts = {"label": 0, "verdicts": 0, "ties": 1, "disputed": 0, "unreadable": unreadable}
    assert make_preferences([PAIR], [drawn], [GOOD]) == ([], counts)


def test_pairs_without_a_label_are_refused():
    with pytest.raises(ValueError, match="the pair '2' has no label"):
        make_preferences([Pair("2", "shoes", Item("B", "shoes"))], [[GOOD]])


def test_a_pair_in_dispute_gives_none():
    """What the teacher learnt to write must not be what is rejected."""
    expected = {"label": 0, "verdicts": 0, "ties": 0, "disputed": 1, "unreadable": 0}
    assert of_pair(GOOD, BAD, reference=BAD) == ([], expected)


RULE = Rule("", {"brand": ("absent",)}, ("Irrelevant",))


def test_a_rationale_that_keeps_the_rules_is_preferred():
    preferences, counts = make_preferences([PAIR], [[WEAK, GOOD]], None, [RULE])
    assert preferences == [Preference("1", GOOD, WEAK, "rules")]
    assert counts == {"label": 0, "rules": 1, "verdicts": 0, "ties": 0, "disputed": 0, "unreadable": 0}


def test_no_rationale_is_preferred_that_breaks_a_rule():
    preferences, counts = make_preferences([PAIR], [[WEAK, BAD]], None, [RULE])
    assert (preferences, counts["disputed"]) == ([], 1)


def test_of_those_that_keep_the_rules_verdicts_decide():
    plain, ruled = (make_preferences([PAIR], [[WEAK, GOOD, BAD]], [GOOD], rules) for rules in ((), [Rule("In words.")]))
    assert plain[0] == ruled[0]
    assert [each.reason for each in plain[0]] == ["label", "verdicts"]

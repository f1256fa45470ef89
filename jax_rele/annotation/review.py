"""The table of decisions, and the review table that a person edits and feeds back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from jax_rele.annotation.votes import Decision, Vote, keep_rationale, row
from jax_rele.errors import UserError
from jax_rele.rationale import parse, render
from jax_rele.types import Pair, Rationale

_required = partial(pa.field, nullable=False)
_TEXT = pa.string()
_FRACTION = pa.struct([_required("name", _TEXT), _required("share", pa.float64())])
_VERDICT = pa.struct([_required("dimension", _TEXT), _required("verdict", _TEXT), _required("share", pa.float64())])

DECISIONS = pa.schema(
    [
        _required("pair_id", _TEXT),
        _required("status", _TEXT),
        _required("reason", _TEXT),
        pa.field("rationale", _TEXT),
        pa.field("label", _TEXT),
        _required("label_share", pa.float64()),
        _required("label_shares", pa.list_(_FRACTION)),
        _required("verdicts", pa.list_(_VERDICT)),
        _required("n_answers", pa.int32()),
        _required("n_models", pa.int32()),
        _required("model", _TEXT),
        pa.field("gold", _TEXT),
        pa.field("gold_agrees", pa.bool_()),
        _required("gold_dropped", pa.bool_()),
        _required("asked_again", pa.bool_()),
        _required("reviewed", pa.bool_()),
        pa.field("first_label", _TEXT),
    ]
)
"""One row per pair; the fields of `Decision`, the rationale as text in the grammar."""

_PROPOSED = ("pair_id", "query", "title", "votes", "proposed_label", "gold_label", "reason", "rationale")
COLUMNS = (*_PROPOSED, "decision", "label")
"""Of the review table; a person fills in the last two."""

CHOICES = ("accept", "reject")
"""The values of `decision`; a `label` beside `accept` replaces the proposed one."""

# Spreadsheets evaluate cells with such a beginning as formulas, and titles are untrusted.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


@dataclass(frozen=True)
class Review:
    """A person's decision on a pair: whether it is accepted, and a label that replaces the proposed one, or None."""

    pair_id: str
    accept: bool
    label: str | None = None


def decisions_to_arrow(decisions: Iterable[Decision]) -> pa.Table:
    """Decisions as a table with the schema `DECISIONS`."""
    return pa.Table.from_pylist([row(decision) for decision in decisions], schema=DECISIONS)


def decisions_from_arrow(table: pa.Table) -> list[Decision]:
    """The decisions of a table with the schema `DECISIONS`."""
    decisions = []
    for fields in table.to_pylist():
        verdicts = fields.pop("verdicts")
        fields["rationale"] = None if fields["rationale"] is None else parse(fields["rationale"])
        fields["label_shares"] = {one["name"]: one["share"] for one in fields["label_shares"]}
        fields["verdicts"] = {one["dimension"]: one["verdict"] for one in verdicts}
        fields["verdict_shares"] = {one["dimension"]: one["share"] for one in verdicts}
        decisions.append(Decision(**fields))
    return decisions


def to_review(decisions: Iterable[Decision]) -> list[Decision]:
    """The decisions that a person should look at: rejected, or against the gold label; the closest votes first."""

    def is_open(decision: Decision) -> bool:
        disputed = decision.status == "accepted" and decision.gold_agrees is False
        return not decision.reviewed and (decision.status == "rejected" or disputed)

    open_decisions = filter(is_open, decisions)
    return sorted(open_decisions, key=lambda decision: (decision.label is None, decision.label_share, decision.pair_id))


def write_reviews(path: str | Path, decisions: Iterable[Decision], pairs: Mapping[str, Pair]) -> int:
    """Writes a review table, one row per decision, and returns the number of rows.

    It is CSV with a byte order mark, by which spreadsheets recognise UTF-8.

    Raises:
      UserError: the file exists, so that a person may have edited it, or it cannot be written.
    """
    rows = 0
    try:
        with open(path, "x", encoding="utf-8-sig", errors="replace", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for decision in decisions:
                pair = pairs[decision.pair_id]
                fractions = ", ".join(f"{name} {part:.2f}" for name, part in decision.label_shares.items() if part)
                text = "" if decision.rationale is None else render(decision.rationale)
                proposal = fractions, decision.label or "", decision.gold or "", decision.reason, text
                cells = decision.pair_id, pair.query, pair.item.title, *proposal, "", ""
                writer.writerow("'" + cell if cell.startswith(_FORMULA) else cell for cell in cells)
                rows += 1
    except FileExistsError:
        raise UserError(f"{path}: is there already and may hold a person's decisions; move it away") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    return rows


def read_reviews(path: str | Path, labels: Sequence[str], known: Iterable[str] | None = None) -> list[Review]:
    """A person's decisions: the rows where `decision` or `label` is filled in.

    Args:
      path: an edited review table; columns may be moved, and others than pair_id, decision and label left out.
      labels: the labels of the schema.
      known: the ids of all pairs; None accepts any.

    Raises:
      UserError: the file cannot be read, lacks a column, or a row has an unknown pair, decision or label, or a pair
        that an earlier row decides; names the row as a spreadsheet counts, the header being row 1.
    """
    known = None if known is None else set(known)
    rows: dict[str, int] = {}
    reviews = []
    for number, fields in _rows(path):
        pair_id = _bare(fields.get("pair_id", ""))
        decision, label = (_bare(fields.get(name, "").strip()) for name in ("decision", "label"))
        if not decision and not label:
            continue
        where = f"{path}: row {number}"
        if not pair_id or (known is not None and pair_id not in known):
            raise UserError(f"{where}: the pair {pair_id!r} is unknown; leave pair_id as it was written")
        if pair_id in rows:
            raise UserError(f"{where}: the pair {pair_id!r} is decided in row {rows[pair_id]} already; keep one")
        rows[pair_id] = number
        # A label alone accepts the pair.
        choice = decision.casefold() or CHOICES[0]
        if choice not in CHOICES:
            raise UserError(f"{where}: the decision {decision!r} is not one of {', '.join(CHOICES)}")
        name = _named(label, labels) if label else None
        if label and name is None:
            raise UserError(f"{where}: the label {label!r} is not one of {', '.join(labels)}")
        if name is not None and choice == "reject":
            raise UserError(f"{where}: has a label although it is rejected; clear one of the two")
        reviews.append(Review(pair_id, choice == "accept", name))
    return reviews


def apply_reviews(
    decisions: Iterable[Decision], reviews: Iterable[Review], votes: Mapping[str, Sequence[Vote]]
) -> list[Decision]:
    """Decisions in which those of a person replace the vote's; they are marked `reviewed`.

    An accepted pair has the rationale that agrees with the vote and concludes with the person's label; where none
    does, the best one with that label instead of its own.

    Raises:
      UserError: a pair is accepted for which there is no readable answer, or without a label that could be proposed.
    """
    by_pair = {review.pair_id: review for review in reviews}
    return [_reviewed(each, by_pair.get(each.pair_id), votes.get(each.pair_id, ())) for each in decisions]


def _reviewed(decision: Decision, review: Review | None, votes: Sequence[Vote]) -> Decision:
    if review is None:
        return decision
    if not review.accept:
        return replace(decision, status="rejected", reason="rejected by a reviewer", reviewed=True)
    label = review.label or decision.label
    last_round = max((vote.round for vote in votes), default=0)
    last_votes = [vote for vote in votes if vote.round == last_round]
    rationale, model, concludes = keep_rationale(last_votes, label, decision.verdicts)
    if rationale is None:
        raise UserError(f"the review accepts pair {decision.pair_id!r}, which has no readable answer; reject it")
    return replace(
        decision,
        status="accepted",
        reason="",
        rationale=rationale if concludes else Rationale(rationale.comparisons, label),
        label=label,
        model=model,
        gold_agrees=None if decision.gold is None else label == decision.gold,
        gold_dropped=False,
        reviewed=True,
    )


def _rows(path: str | Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8; save it as CSV in UTF-8"
        raise UserError(f"{path}: cannot be read ({why})") from None
    # Spreadsheets separate cells by semicolons in some countries.
    header = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    table: list[list[str]] = []
    try:
        table.extend(reader)
    except csv.Error as error:
        raise UserError(
            f"{path}: row {len(table) + 1}: {error}; close or double its quotes, or save the table as CSV again"
        ) from None
    names = [name.strip().casefold() for name in table[0]] if table else []
    if missing := [name for name in ("pair_id", "decision", "label") if name not in names]:
        raise UserError(f"{path}: has no column {missing[0]!r}; the first row must name the columns")
    if repeated := sorted({name for name in names if name and names.count(name) > 1}):
        raise UserError(f"{path}: names the column {repeated[0]!r} twice; remove one")
    for number, cells in enumerate(table[1:], 2):
        if not any(cell.strip() for cell in cells):
            continue
        # A quote that takes in the rows behind it leaves no cells for the columns of decisions.
        if not max(map(names.index, ("pair_id", "decision", "label"))) < len(cells) <= len(names):
            raise UserError(f"{path}: row {number}: has {len(cells)} cells for {len(names)} columns")
        yield number, dict(zip(names, cells))


def _named(label: str, labels: Sequence[str]) -> str | None:
    if label in labels:
        return label
    alike = [name for name in labels if name.casefold() == label.casefold()]
    return alike[0] if len(alike) == 1 else None


def _bare(cell: str) -> str:
    return cell.removeprefix("'")

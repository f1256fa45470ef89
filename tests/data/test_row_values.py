"""What a row's values and names may look like: numbers, truth values, spellings of names, HTML."""

import math
from decimal import Decimal

import pytest

from jax_rele.data.columns import check_columns
from jax_rele.data.rows import RowError, parse_row
from jax_rele.types import Item, Pair, ReadOptions

LABELS = ("Exact", "Irrelevant")


def parse(row, fields=None, label_map=None, max_characters=0, html="keep", **options):
    reading = ReadOptions(fields or {}, html=html, max_characters=max_characters)
    return parse_row(row, reading, label_map=label_map or {}, label_names=LABELS, **options)


def row(**changes):
    return {"query": "red shoe", "item": {"id": "i1", "title": "Shoe"}} | changes


WHOLE = [3, 3.0, Decimal("3.00"), Decimal("3E+0"), -0.0, 1e3, 2.0**52]


@pytest.mark.parametrize("number", WHOLE)
def test_whole_numbers_are_written_whole_everywhere(number):
    text = str(int(number))
    pair = parse_row(
        {"pair_id": number, "query": number, "item": {"id": number, "title": number, "attributes": {"a": number}}}
        | {"label": number},
        label_map={text: "Exact"},
        label_names=LABELS,
    )
    assert (pair.pair_id, pair.query, pair.item.id, pair.item.title, pair.label) == (text,) * 4 + ("Exact",)
    assert pair.item.attributes == (("a", text),)


@pytest.mark.parametrize("theirs", [True, "true", "True", "TRUE"])
def test_truths_are_labels(theirs):
    assert parse(row(label=theirs), label_map={"true": "Exact", "false": "Irrelevant"}).label == "Exact"
    with pytest.raises(RowError, match=r"unknown label 'true'.*labels\.aliases takes 'true' and 'false'"):
        parse(row(label=True), label_map={"1": "Exact"})


@pytest.mark.parametrize(("theirs", "alias"), [("3.0", "3"), (3, "3.0"), (3.0, "3.0"), ("3", "3.0"), (0.5, "0.5")])
def test_numbers_are_labels_however_they_are_written(theirs, alias):
    assert parse(row(label=theirs), label_map={alias: "Exact"}).label == "Exact"


@pytest.mark.parametrize("value", [math.inf, -math.inf, Decimal("Infinity"), 1e999])
@pytest.mark.parametrize("field", ["query", "pair_id", "label", "locale", "brand"])
def test_infinity_is_no_text(field, value):
    with pytest.raises(RowError, match="which is no text"):
        parse({"query": "q", "title": "t", field: value})


def test_a_float_that_is_not_exact_is_no_id():
    with pytest.raises(RowError, match="too large to be exact; write ids as text"):
        parse(row(item={"id": 2.0**60, "title": "t"}))
    assert parse(row(item={"id": 2**60, "title": "t"})).item.id == str(2**60)


@pytest.mark.parametrize(
    "theirs",
    [
        {"Query": "q", "TITLE": "t", "Item ID": "i", " label ": "Exact", "Long-Tail": "yes", "Pair ID": "p"},
        {"QUERY": "q", "Item.Title": "t", "item-id": "i", "Label": "Exact", "long tail": True, "pair id": "p"},
        {"query": "q", "Item": {"ID": "i", "Title": "t"}, "LABEL": "Exact", "LONG_TAIL": 1, "Pair_Id": "p"},
    ],
)
def test_names_may_differ_in_case_and_blanks(theirs):
    expected = Pair("p", "q", Item("i", "t"), label="Exact", long_tail=True)
    assert parse(theirs) == expected
    check_columns(theirs, ReadOptions(), "f.csv", require_label=True)
    if "Item" not in theirs:
        assert parse({**theirs, "Attributes.Size": 9}).item.attributes == (("Size", "9"),)


def test_similar_names_do_not_take_the_part_of_exact_or_mapped_ones():
    assert parse({"Query": "no", "query": "yes", "Title": "no", "title": "yes"}).item.title == "yes"
    assert parse({"Query": "q", "name": "t", "Title": "no"}, {"item.title": "name"}).item.title == "t"
    assert parse({"Search Term": "q", "title": "t"}, {"query": "search term"}).query == "q"
    with pytest.raises(RowError, match=r"the columns \['Query', 'QUERY'\] differ in their spelling alone"):
        parse({"Query": "a", "QUERY": "b", "title": "t"})


def test_html_becomes_text_on_request():
    theirs = row(
        query="bath &amp; body",
        item={
            "title": "<b>Shoe</b> &quot;X&quot; &lt;5 lbs",
            "bullets": ["<li>a</li>", "b"],
            "attributes": {"s": "&eacute;"},
        },
    )
    pair = parse(theirs, html="text")
    assert (pair.query, pair.item.title, pair.item.bullets) == ("bath & body", 'Shoe "X" <5 lbs', "a\nb")
    assert pair.item.attributes == (("s", "\u00e9"),)
    assert parse(theirs).query == "bath &amp; body"
    with pytest.raises(RowError, match="the title holds nothing but HTML"):
        parse(row(item={"title": "<br><br>"}), html="text")


@pytest.mark.parametrize("label", ["exact", "EXACT", "Ｅxact"])
def test_a_label_in_another_case_names_the_one_that_it_may_be(label):
    row = {"query": "q", "title": "t", "label": label}
    with pytest.raises(RowError, match=r"map it in labels\.aliases if it is 'Exact'"):
        parse(row)
    assert parse(row, label_map={label: "Exact"}).label == "Exact"


@pytest.mark.parametrize("rounded", ["8.80123E+12", "1.2345678901234568e+17", "1E+05"])
def test_an_id_that_a_spreadsheet_rounded_is_refused(rounded):
    """Otherwise different items would be one."""
    with pytest.raises(RowError, match="is rounded, so that others look the same"):
        parse(row(item={"id": rounded, "title": "t"}))
    with pytest.raises(RowError, match="is rounded"):
        parse(row(pair_id=rounded))


@pytest.mark.parametrize("plain", ["5E10", "12e4", "B01", "1.5"])
def test_ids_that_look_a_little_like_numbers_stay(plain):
    assert parse(row(item={"id": plain, "title": "t"})).item.id == plain
    assert parse(row(item={"id": f"\ufeff{plain}\u200b", "title": "t"})).item.id == plain


def test_the_order_and_width_of_attributes_do_not_make_another_item():
    one, other = (
        parse(row(item={"title": "t", "attributes": attributes})).item.id
        for attributes in ({"size": "9", "fit": "Wide"}, {"fit": "wide", "size": "\uff19"})
    )
    assert one == other


@pytest.mark.parametrize("text", ["&#8203;", "&shy;", "<b>&#x200b;</b>", "<br>&nbsp;&zwj;"])
def test_a_text_that_shows_nothing_without_its_html_is_a_bad_row(text):
    with pytest.raises(RowError, match="the query holds nothing but HTML"):
        parse(row(query=text), html="text")
    with pytest.raises(RowError, match="the title holds nothing but HTML"):
        parse(row(item={"id": "1", "title": text}), html="text")


def attributes_of(fields_of_row, **options):
    return dict(parse({"query": "q", "title": "t", **fields_of_row}, **options).item.attributes)


@pytest.mark.parametrize(
    "fields_of_row",
    [
        {"attributes": {"size": "9", "size ": "10"}},
        {"attributes.size": "9", "item.attributes.size": "10"},
        {"attributes": {"size": "9"}, "attributes.size": "10"},
    ],
)
def test_an_attribute_of_two_values_is_a_bad_row(fields_of_row):
    with pytest.raises(RowError, match=r"^item\.attributes\.size has two values, '9' and '10'"):
        attributes_of(fields_of_row)


def test_one_number_in_two_forms_is_one_value():
    assert attributes_of({"attributes": '{"size": 1.10}', "attributes.size": 1.1}) == {"size": "1.1"}


def test_an_empty_cell_takes_no_attribute_away():
    assert attributes_of({"attributes": {"size": "9"}, "attributes.size": ""}) == {"size": "9"}
    assert attributes_of({"attributes.size": "9", "item.attributes.size": "9"}) == {"size": "9"}
    fields = {"item.attributes.size": "s"}
    assert attributes_of({"attributes": {"size": "9"}, "s": "10"}, fields=fields) == {"size": "10"}
    assert attributes_of({"attributes": {"size": "9"}, "s": ""}, fields=fields) == {"size": "9"}

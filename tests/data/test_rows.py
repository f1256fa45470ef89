"""Rows, nested and flat, valid and not, to pairs."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.data.columns import check_columns, check_mapping
from jax_rele.data.rows import Quarantined, RowError, parse_row
from jax_rele.errors import UserError
from jax_rele.names import SPLITS
from jax_rele.text import drop_ignorable, is_visible, text_key
from jax_rele.types import ITEM_FIELDS, Item, Pair, ReadOptions, Tag

LABELS = ("Exact", "Irrelevant")

plain = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
text = plain.map(lambda value: value.replace("\0", "").strip()).filter(is_visible)
ids = text.map(lambda value: drop_ignorable(value).strip()).filter(is_visible)
kind = text.filter(lambda value: "-" not in value)


def parse(row, fields=None, label_map=None, max_characters=0, html="keep", **options):
    reading = ReadOptions(fields or {}, html=html, max_characters=max_characters)
    return parse_row(row, reading, label_map=label_map or {}, label_names=LABELS, **options)


def row(**changes):
    return {"query": "red shoe", "item": {"id": "i1", "title": "Shoe"}} | changes


@st.composite
def pairs(draw):
    item = Item(
        id=draw(ids),
        title=draw(text.filter(text_key)),
        **{field: draw(st.just("") | text) for field in ITEM_FIELDS if field != "title"},
        attributes=tuple(draw(st.dictionaries(text, text, max_size=3)).items()),
    )
    # adjacent segments of one type are distinct: BIO starts each with B-
    tags = draw(st.none() | st.lists(st.builds(Tag, text, kind), max_size=3).map(tuple))
    return Pair(
        pair_id=draw(ids),
        query=draw(text.filter(text_key)),
        item=item,
        label=draw(st.none() | st.sampled_from(LABELS)),
        locale=draw(st.just("") | text),
        split=draw(st.none() | st.sampled_from(SPLITS)),
        tags=tags,
        query_frequency=draw(st.none() | st.integers(0, 2**63 - 1)),
        long_tail=draw(st.none() | st.booleans()),
    )


def as_row(pair):
    tags = pair.tags and {"tokens": [tag.text for tag in pair.tags], "labels": [f"B-{tag.type}" for tag in pair.tags]}
    tags = {"tokens": [], "labels": []} if pair.tags == () else tags
    item = {field: getattr(pair.item, field) for field in ("id", *ITEM_FIELDS)}
    return {
        **{
            name: getattr(pair, name)
            for name in ("pair_id", "query", "label", "locale", "split", "query_frequency", "long_tail")
        },
        "item": item | {"attributes": dict(pair.item.attributes)},
        "query_tags": tags,
    }


def flattened(row, name):
    """The row without nesting; `name` spells the fields of the item."""
    item = dict(row["item"])
    attributes = item.pop("attributes")
    flat = {key: value for key, value in row.items() if key != "item"}
    flat |= {name(key): value for key, value in item.items()}
    flat |= {name(f"attributes.{key}"): value for key, value in attributes.items()}
    return flat | {"query_tags": row["query_tags"] and json.dumps(row["query_tags"])}


@given(pairs())
def test_every_spelling_of_a_pair_gives_that_pair(pair):
    nested = as_row(pair)
    dotted = flattened(nested, lambda key: f"item.{key}")
    bare = flattened(nested, lambda key: "item_id" if key == "id" else key)
    renamed = {"product": nested["item"]} | {key: value for key, value in nested.items() if key != "item"}
    cell = flattened(nested | {"item": nested["item"] | {"attributes": {}}}, lambda key: key)
    cell |= {"item_id": cell.pop("id"), "attributes": json.dumps(nested["item"]["attributes"])}
    assert parse(nested) == parse(dotted) == parse(bare) == parse(cell) == pair
    assert parse(renamed, {"item": "product"}) == parse(nested, {"item": "product"}) == pair
    assert parse(json.loads(json.dumps(nested))) == pair


@given(pairs())
def test_ids_are_derived_from_content(pair):
    bare = as_row(pair)
    del bare["pair_id"], bare["item"]["id"]
    derived, again = parse(bare), parse(json.loads(json.dumps(bare)))
    assert derived == again
    assert derived.pair_id != derived.item.id
    elsewhere = parse(bare | {"locale": pair.locale + "x"})
    assert elsewhere.item == derived.item
    assert elsewhere.pair_id != derived.pair_id
    other = parse(bare | {"query": bare["query"] + "x"})
    assert other.item == derived.item
    assert other.pair_id != derived.pair_id
    retitled = parse(bare | {"item": bare["item"] | {"title": bare["item"]["title"] + "x"}})
    assert retitled.item.id != derived.item.id
    assert retitled.pair_id != derived.pair_id


def test_text_is_kept_but_for_nul_and_outer_space():
    pair = parse(row(query="\0 Ｒｅｄ\u00a0 Cafe\u0301\0  shoe \t", locale=None))
    assert pair.query == "Ｒｅｄ\u00a0 Cafe\u0301  shoe"
    assert pair.locale == ""


def test_numbers_lists_and_truths_become_text():
    item = {
        "id": 7,
        "title": 501,
        "brand": 4.5,
        "color": float("nan"),
        "category": Decimal("1.50"),
        "bullets": ["soft", None, " ", 3],
        "attributes": {"waterproof": True, "heel": False, "sizes": ["S", "M"], "weight": None, 5: 6},
    }
    assert parse(row(item=item)).item == Item(
        id="7",
        title="501",
        brand="4.5",
        category="1.50",
        bullets="soft\n3",
        attributes=(("waterproof", "true"), ("heel", "false"), ("sizes", "S\nM"), ("5", "6")),
    )


def test_mapped_names_win_and_fall_back_to_the_canonical_ones():
    fields = {"item": "product", "item.title": "name", "item.attributes.size": "Size", "query": "search.text"}
    theirs = {"search": {"text": "boot"}, "product": {"name": "Boot", "title": "?"}, "Size": 9, "query": "?"}
    pair = parse(theirs, fields)
    assert (pair.query, pair.item.title, pair.item.attributes) == ("boot", "Boot", (("size", "9"),))
    assert parse(row(), fields).item.title == "Shoe"
    assert parse({"query": "q", "product.name": "Flat"}, fields).item.title == "Flat"
    # a name that is present but null is missing, not an invitation to guess
    with pytest.raises(RowError, match="missing title"):
        parse({"query": "q", "name": None, "title": "?"}, {"item.title": "name"})


def test_bare_names_beside_a_nested_item_are_not_its_fields():
    pair = parse(row(description="of the row", brand="?", attributes={"of": "the row"}))
    assert pair.item == Item("i1", "Shoe")


def test_a_column_that_is_mapped_to_one_field_is_not_read_as_another():
    theirs = {"query": "q", "name": "Boot", "title": "A long story", "item": "B1"}
    pair = parse(theirs, {"item.title": "name", "item.description": "title", "item.id": "item"})
    assert (pair.item.id, pair.item.title, pair.item.description) == ("B1", "Boot", "A long story")
    swapped = {"query": "q", "item": {"title": "Acme", "brand": "Boot"}}
    assert parse(swapped, {"item.title": "brand", "item.brand": "title"}).item.brand == "Acme"
    only = {"query": "q", "item": {"name": "Boot", "title": "A long story"}}
    assert parse(only, {"item.title": "name", "item.description": "title"}).item.description == "A long story"
    with pytest.raises(RowError, match="missing title"):
        parse({"query": "q", "item": {"title": "A long story"}}, {"item.title": "name", "item.description": "title"})


def test_labels():
    aliases = {"E": "Exact", "1": "Exact", "true": "Exact", "Exact": "Irrelevant"}
    for label in ("Exact", "E", 1, "1", True, " E "):
        assert parse(row(label=label), label_map=aliases).label == "Exact"
    for label in (None, "", " "):
        assert parse(row(label=label)).label is None
        with pytest.raises(RowError, match="missing label"):
            parse(row(label=label), require_label=True)
    for label in ("e", "exact", "X", 2):
        with pytest.raises(RowError, match=r"unknown label .*'Exact', 'Irrelevant'.*\{'E': 'Exact'"):
            parse(row(label=label), label_map=aliases)


def test_bio():
    labels = ["O", "B-a", "I-a", "I-b", "O", "I-b", "B-b", "I-b", "I-a"]
    tags = parse(row(query_tags={"tokens": list("stuvwxyzq"), "labels": labels})).tags
    assert [(tag.text, tag.type) for tag in tags] == [("t u", "a"), ("v", "b"), ("x", "b"), ("y z", "b"), ("q", "a")]
    assert parse(row(query_tags={"tokens": ["a"], "labels": ["O"]})).tags == ()
    assert parse(row(query_tags=" ")).tags is None
    assert parse(row(query_tags=float("nan"))).tags is None


@pytest.mark.parametrize("value", [0, 12, "12", 12.0, "12.0", " 12 ", Decimal(12)])
def test_whole_frequencies(value):
    assert parse(row(query_frequency=value)).query_frequency in (0, 12)


def test_long_tail_marks():
    for value in (True, "true", "Yes", 1, "1", 1.0):
        assert parse(row(long_tail=value)).long_tail is True
    for value in (False, "False", "no", 0, " 0 ", 0.0):
        assert parse(row(long_tail=value)).long_tail is False
    for value in (None, "", float("nan")):
        assert parse(row(long_tail=value)).long_tail is None
    assert parse(row(rare="yes"), {"long_tail": "rare"}).long_tail is True


@pytest.mark.parametrize(
    "changes",
    [
        {"query": "x" * 21},
        {"locale": "x" * 21},
        {"pair_id": "x" * 21},
        *({"item": {"id": "i", "title": "t", field: "x" * 21}} for field in ("id", *ITEM_FIELDS)),
        {"item": {"id": "i", "title": "t", "attributes": {"a": "b", "x": "x" * 21}}},
        {"item": {"id": "i", "title": "t", "attributes": {"x" * 21: "x"}}},
        {"query_tags": {"tokens": ["x" * 21], "labels": ["B-a"]}},
    ],
)
def test_long_texts(changes):
    long = row(**changes)
    with pytest.raises(RowError, match=r"^a text of 21 characters, more than data\.max_characters 20$"):
        parse({"pair_id": "p"} | long, max_characters=20)
    parse({"pair_id": "p"} | long, max_characters=21)
    parse(long)


BAD = {
    "missing query": [{"item": {"title": "t"}}, row(query=None), row(query=float("nan"))],
    "blank query": [row(query=""), row(query=" \0\t\u00a0")],
    "query must be text, got list": [row(query=["a"])],
    "query must be text, got dict": [row(query={"a": 1})],
    "query must be text, got bool": [row(query=True)],
    "query must be text, got bytes": [row(query=b"a")],
    r"query is no valid Unicode text: 'a\ud800'": [row(query="a\ud800")],
    "missing item": [{"query": "q"}, row(item=None), {"query": "q", "attributes": {"a": 1}}],
    "item must be an object, got str": [row(item="Shoe")],
    "item must be an object, got list": [row(item=[])],
    "missing title": [row(item={}), row(item={"title": None}), {"query": "q", "brand": "b"}],
    "blank title": [row(item={"title": " "})],
    "item.title must be text, got list": [row(item={"title": ["a"]})],
    "item.brand must be text, got dict": [row(item={"title": "t", "brand": {}})],
    "item.description must be text, got list": [row(item={"title": "t", "description": ["a"]})],
    "item.bullets must be text, got dict": [row(item={"title": "t", "bullets": x}) for x in ({}, [{}])],
    "item.bullets must be text, got list": [row(item={"title": "t", "bullets": [["a"]]})],
    "item.attributes must be an object, got list": [row(item={"title": "t", "attributes": x}) for x in ([], "[1]")],
    "item.attributes must be a JSON object, got the text '{\"a\": '": [
        row(item={"title": "t", "attributes": '{"a": '}),
        {"query": "q", "title": "t", "attributes": '{"a": '},
    ],
    "query_tags must be a JSON object, got the text '[[[[": [row(query_tags="[" * 100_000)],
    "item.attributes.a must be text, got dict": [row(item={"title": "t", "attributes": {"a": {}}})],
    "blank name of an attribute": [row(item={"title": "t", "attributes": {" ": "a"}})],
    "unknown split 'held out': must be one of ['train', 'validation', 'test']": [row(split="Held out")],
    "label must be text, got list": [row(label=["Exact"])],
    "query_tags must be an object, got list": [row(query_tags=["B-a"])],
    "query_tags must hold the lists tokens and labels": [
        row(query_tags={"tokens": ["a"]}),
        row(query_tags={"tokens": "a", "labels": ["O"]}),
    ],
    "query_tags has 2 tokens but 1 labels": [row(query_tags={"tokens": ["a", "b"], "labels": ["O"]})],
    "blank token of query_tags": [row(query_tags={"tokens": [""], "labels": ["O"]})],
    "which is no BIO label": [
        row(query_tags={"tokens": ["a"], "labels": [label]}) for label in ("S-a", "B", "B-", "I- ", "", "b-a", None, 3)
    ],
    "query_frequency must be a whole number from 0 on": [
        row(query_frequency=value) for value in (-1, 1.5, "many", float("inf"), 2**63, "1e999999999")
    ],
    "query_frequency must be text, got bool": [row(query_frequency=True)],
    "long_tail must be true or false, yes or no, 1 or 0, got": [row(long_tail=value) for value in ("maybe", 2, -1)],
    "long_tail must be text, got list": [row(long_tail=[])],
}


@pytest.mark.parametrize(("reason", "bad"), [(reason, bad) for reason, rows in BAD.items() for bad in rows])
def test_bad_rows_say_why(reason, bad):
    with pytest.raises(RowError) as error:
        parse(bad)
    assert reason in str(error.value)
    str(error.value).encode()  # a reason is written to a table
    assert "\n" not in str(error.value)


def test_a_long_value_is_shortened_in_the_reason():
    with pytest.raises(RowError) as error:
        parse(row(label="x" * 10_000))
    assert len(str(error.value)) < 300


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@given(pairs(), st.data())
def test_whatever_a_row_holds_it_is_a_pair_or_a_row_error(pair, data):
    spoilt = as_row(pair)
    where = data.draw(st.sampled_from([spoilt, spoilt["item"]]))
    where[data.draw(st.sampled_from(sorted(where)))] = data.draw(junk)
    try:
        parsed = parse(spoilt)
    except RowError as error:
        str(error).encode()
    else:
        assert parsed.query
        assert parsed.item.title
        assert parsed.label in (None, *LABELS)


def test_mapping_is_checked():
    check_mapping(ReadOptions({"item.attributes.size": "s", "query": "q", "item.id": "i"}), {"E": "Exact"}, LABELS)
    for fields in ({"titel": "t"}, {"item.attributes.": "t"}, {"title": "t"}):
        with pytest.raises(UserError, match=r"data\.fields: .* is no field of a pair"):
            check_mapping(ReadOptions(fields), {}, LABELS)
    with pytest.raises(UserError, match=r"labels\.aliases: 'E' is mapped to 'exact'"):
        check_mapping(ReadOptions(), {"E": "exact"}, LABELS)


def test_columns_are_checked():
    for columns in (["query", "title"], ["query", "item"], ["query", "item.title", "x"]):
        check_columns(columns, ReadOptions(), "f.csv")
    check_columns(["q", "product"], ReadOptions({"query": "q", "item": "product"}), "f.csv")
    with pytest.raises(
        UserError, match=r"^f\.csv: no column holds the query; the columns are \['q', 'title'\]; .*\{query: "
    ):
        check_columns(["q", "title"], ReadOptions(), "f.csv")
    with pytest.raises(UserError, match=r"no column holds the title; .*\{item\.title: "):
        check_columns(["query", "name"], ReadOptions(), "f.csv")
    with pytest.raises(UserError, match="no column holds the title"):
        check_columns(["query", "title"], ReadOptions({"item.title": "name", "item.brand": "title"}), "f.csv")
    with pytest.raises(UserError, match="no column holds the label"):
        check_columns(["query", "title"], ReadOptions(), "f.csv", require_label=True)


def test_other_names_of_splits_are_known_and_a_split_may_go_unread():
    for written, split in (("dev", "validation"), ("Valid", "validation"), ("Test", "test"), ("train", "train")):
        assert parse(row(split=written)).split == split
    assert parse(row(split="whatever"), with_split=False).split is None


@pytest.mark.parametrize(
    "changes",
    [{"item": {"title": "Shoe", "attributes": '{"a": 1, "a": 2}'}}, {"query_tags": '{"tokens": [], "tokens": []}'}],
)
def test_a_key_twice_in_an_object_written_as_text_is_a_bad_row(changes):
    with pytest.raises(RowError, match=r"the key '\w+' twice"):
        parse(row(**changes))


def test_a_bad_row_is_named_with_its_file_where_that_is_not_the_source():
    bad = Quarantined("folder/a.csv", 3, "blank query", "")
    assert bad.named("folder/a.csv") == "row 3: blank query"
    assert bad.named("folder") == "row 3 of folder/a.csv: blank query"

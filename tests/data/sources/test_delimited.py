"""CSV and TSV of every making: each line ends in a row, in the header, or is blank, and no row takes in another."""

import csv
import io
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.data.rows import RowError
from jax_rele.data.sources.delimited import QUOTED_CELLS, SHORT_ROWS, delimited_rows
from jax_rele.data.sources.files import SourceFile
from jax_rele.data.sources.readers import read_file
from jax_rele.data.sources.shards import read_pairs
from jax_rele.errors import UserError
from jax_rele.types import ReadOptions

LABELS = ("Exact", "Irrelevant")
QUERIES = ("tv", "mug", "lamp", "hat", "sofa", "rug", "cup", "pen")


def table(titles, separator=",", header=("query", "title", "label")):
    """A file without any quoting in which row n, from 0, is in line n + 2."""
    rows = [(QUERIES[i % len(QUERIES)], title, LABELS[i % 2]) for i, title in enumerate(titles)]
    return "".join(separator.join(cells[: len(header)]) + "\n" for cells in (header, *rows))


def plain_titles(count=12):
    return [f"model {i}" for i in range(count)]


def read(folder, text, name="data.csv", encoding="utf-8", for_prediction=False, **reading):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    reading = ReadOptions(**reading)
    return read_pairs(path, label_names=LABELS, for_prediction=for_prediction, reading=reading)


def titles_of(pairs):
    return [pair.item.title for pair in pairs]


@pytest.mark.parametrize("first", ['55" stand', '"55 inch stand', '"Comfy" sofa', "'single'", '""', 'a "b" c', '"'])
@pytest.mark.parametrize("last", ['hook size 3"', '"', '"closed"', 'x""'])
def test_quotes_in_tsv_are_characters(tmp_path, first, last):
    titles = plain_titles()
    titles[2], titles[8] = first, last
    pairs, bad = read(tmp_path, table(titles, "\t"), "data.tsv")
    assert (titles_of(pairs), bad) == (titles, [])


def test_tsv_is_quoted_where_the_config_says_so(tmp_path):
    titles = ["plain", 'fawkes 36" vanity', "tab\tinside", "two\nlines"]
    written = io.StringIO()
    csv.writer(written, delimiter="\t", lineterminator="\n").writerows(
        [("query", "title"), *((f"q{i}", title) for i, title in enumerate(titles))]
    )
    pairs, bad = read(tmp_path, written.getvalue(), "data.tsv", quoting="standard")
    assert (titles_of(pairs), bad) == (titles, [])
    notes = Counter()
    rows = list(read_file(SourceFile("f", str(tmp_path / "data.tsv")), notes=notes))
    assert [number for number, row, _ in rows if isinstance(row, RowError)] == [4, 6]
    assert "set data.quoting to standard" in str(rows[2][1])
    assert notes == {QUOTED_CELLS: 1, SHORT_ROWS: 1}


def test_a_header_in_quotes_says_that_a_tsv_is_quoted(tmp_path):
    text = '"query"\t"title"\t"label"\n"tv"\t"55"" stand\tblack"\t"Exact"\n"mug"\t"a\nb"\t"Exact"\n'
    pairs, bad = read(tmp_path, text, "data.tsv")
    assert (titles_of(pairs), bad) == (['55" stand\tblack', "a\nb"], [])


@pytest.mark.parametrize("gap", range(1, 9))
def test_a_csv_cell_that_took_in_rows_costs_its_own_row_alone(tmp_path, gap):
    titles = plain_titles()
    titles[2], titles[2 + gap] = '"55 inch stand', 'hook size 3"'
    pairs, bad = read(tmp_path, table(titles))
    assert titles_of(pairs) == [title for i, title in enumerate(titles) if i != 2]
    assert [one.row for one in bad] == [4]
    assert f"takes in other rows (to line {4 + gap})" in bad[0].reason
    assert "data.quoting" in bad[0].reason


@pytest.mark.parametrize(
    ("spoilt", "rows"),
    [
        ('tv,"never closed,Exact', 1),
        ('"tv,never closed,Exact', 1),
        ('tv,stand,"Exact', 1),
        ('tv,"a ""b"" c,Exact\nmug,d"",Exact', 2),
        ('tv,"a, b and c,Exact\nmug,"d, e",Exact', 2),
        ('tv,"a\nmug,b,Exact\nlamp,c",Exact', 3),
    ],
)
def test_what_stands_around_a_broken_row_is_read(tmp_path, spoilt, rows):
    before, after = plain_titles(6), [f"later {i}" for i in range(6)]
    text = f"{table(before)}{spoilt}\n{table(after).partition(chr(10))[2]}"
    pairs, bad = read(tmp_path, text)
    assert titles_of(pairs)[:6] == before
    assert titles_of(pairs)[-6:] == after
    assert len(pairs) + len(bad) == 12 + rows
    assert bad


PROSE = [
    "one\ntwo",
    "light, wide\nred, blue and green",
    "first line\n\nthird, with commas, and more\n",
    'a 12" screen\nand a "quote"',
    "1,5 kg\nheavy",
    "\n".join(f"bullet {i}, in prose" for i in range(20)),
    "{'a': 1,\n 'b': 2}",
]


@pytest.mark.parametrize("text", PROSE)
@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_cells_of_several_lines_are_cells(tmp_path, text, position, quoting):
    header = ["query", "title", "label"]
    header.insert(position, "description")
    written = io.StringIO()
    writer = csv.writer(written, quoting=quoting, lineterminator="\n")
    writer.writerow(header)
    for i in range(8):
        cells = [f"q{i}", f"t{i}", LABELS[i % 2]]
        cells.insert(position, text)
        writer.writerow(cells)
    pairs, bad = read(tmp_path, written.getvalue())
    assert not bad
    assert [pair.item.description for pair in pairs] == [text.strip()] * 8


@pytest.mark.parametrize("text", ["a,b\nc,d", "100,000\n10,5 kg"])
def test_rows_whose_cells_are_quoted_are_trusted(tmp_path, text):
    header, rest = '"query","title","label"\n', '"mug","m","Exact"\n'
    pairs, bad = read(tmp_path, f'{header}"tv","{text}","Exact"\n{rest}')
    assert (titles_of(pairs), bad) == ([text, "m"], [])


@pytest.mark.parametrize("text", ["a,b\nc,d", "100,000\n10,5 kg", 'a "b" a,b\nc,d'])
def test_lines_whose_last_cell_is_no_label_are_no_rows(tmp_path, text):
    quoted = text.replace('"', '""')
    titles = [f"{one} {two}" for one in QUERIES for two in QUERIES]
    pairs, bad = read(tmp_path, f'{table(titles)}tv,"{quoted}",Exact\n')
    assert (titles_of(pairs), bad) == ([*titles, text], [])


@pytest.mark.parametrize("header", ["query,title,label", '"query","title","label"'])
@pytest.mark.parametrize("inside", ["", ' 13""', ' ""x"" y'])
@pytest.mark.parametrize("gap", range(1, 5))
def test_no_sign_of_quoting_hides_rows_in_a_cell(tmp_path, header, inside, gap):
    titles = plain_titles(30)
    titles[12], titles[12 + gap] = f'"55 inch{inside}', f'size 3{inside}"'
    pairs, bad = read(tmp_path, table(titles).replace("query,title,label", header))
    assert titles_of(pairs) == titles[:12] + titles[13:]
    assert [one.row for one in bad] == [14]


def test_a_record_that_may_be_text_or_rows_is_refused_whole(tmp_path):
    pairs, bad = read(tmp_path, 'query,title,brand\ntv,"55,Acme\nmug,m",Umbra\nhat,h,Acme\n')
    assert (titles_of(pairs), [one.row for one in bad]) == (["h"], [2])
    assert "takes in lines that look like rows (to line 3)" in bad[0].reason
    rows = list(delimited_rows([b"query\n", b'"55 inch\n', b'mug"\n', b"hat\n"], "f", "utf-8", default_delimiter=","))
    assert [isinstance(row, RowError) for _, row, _ in rows] == [True, False]


def test_quoting_standard_takes_cells_as_they_are(tmp_path):
    text = 'query,title,label\ntv,"a,b\nc,d",Exact\nmug,m,Exact\n'
    _, bad = read(tmp_path, text)
    assert [one.row for one in bad] == [2]
    pairs, bad = read(tmp_path, text, quoting="standard")
    assert (titles_of(pairs), bad) == (["a,b\nc,d", "m"], [])


def test_quoting_none_and_backslash_in_csv(tmp_path):
    pairs, bad = read(tmp_path, 'query,title\ntv,"55 inch\nmug,m\n', quoting="none")
    assert (titles_of(pairs), bad) == (['"55 inch', "m"], [])
    pairs, bad = read(tmp_path, 'query,title\ntv,"55\\" stand, black"\nmug,"m"\n', quoting="backslash")
    assert (titles_of(pairs), bad) == (['55" stand, black', "m"], [])


@pytest.mark.parametrize("separator", [",", ";", "|", "\t"])
@pytest.mark.parametrize("name", ["data.csv", "data.tsv"])
def test_the_header_says_the_delimiter(tmp_path, separator, name):
    pairs, bad = read(tmp_path, table(plain_titles(), separator), name)
    assert (titles_of(pairs), bad) == (plain_titles(), [])


def test_other_delimiters(tmp_path):
    text = table(plain_titles(), "^")
    with pytest.raises(UserError, match=r"no column holds the query; the columns are \['query\^title\^label'\]"):
        read(tmp_path, text)
    assert titles_of(read(tmp_path, text, delimiter="^")[0]) == plain_titles()
    assert titles_of(read(tmp_path, f"sep=^\n{text}")[0]) == plain_titles()
    pairs, _ = read(tmp_path, "query;title;label, of three\ntv;t;Exact\n", fields={"label": "label, of three"})
    assert titles_of(pairs) == ["t"]
    with pytest.raises(UserError, match=r"set data\.delimiter to ';' if that divides the cells"):
        read(tmp_path, "query;title, in full;label\ntv;t,x;Exact\n")


def test_cells_after_a_blank(tmp_path):
    pairs, bad = read(tmp_path, 'query, title, label\ntv, "a, b", Exact\nmug, plain, Irrelevant\n')
    assert (titles_of(pairs), [pair.label for pair in pairs], bad) == (["a, b", "plain"], list(LABELS), [])


def test_empty_columns_at_the_end_and_columns_without_a_name(tmp_path):
    pairs, bad = read(tmp_path, ",query,title,,label,,\n0,tv,a,,Exact,,\n1,mug,b,,Exact\n2,hat,c,,Exact,,,,\n")
    assert (titles_of(pairs), bad) == (["a", "b", "c"], [])
    _, bad = read(tmp_path, "query,title,\ntv,a,\nmug,b,c\nhat\n")
    assert [(one.row, one.reason.partition(":")[0]) for one in bad] == [
        (3, "3 cells, but the header has 2"),
        (4, "1 cells, but the header has 2"),
    ]
    with pytest.raises(UserError, match=r"the header names \['title'\] twice; give every column its own name"):
        read(tmp_path, "query,title,title\n")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_ends_of_lines_and_marks(tmp_path, end, name, encoding):
    text = table(plain_titles(3000), "\t" if name.endswith(".tsv") else ",")
    if name.endswith(".jsonl"):
        text = "".join(f'{{"query": "q", "title": "{title}"}}\n' for title in plain_titles(3000))
    pairs, bad = read(tmp_path, text.replace("\n", end), name, encoding, for_prediction=True)
    assert (titles_of(pairs), bad) == (plain_titles(3000), [])


def test_a_file_that_was_joined_from_two(tmp_path):
    pairs, bad = read(tmp_path, table(["a"]) + table(["b"]))
    assert titles_of(pairs) == ["a", "b"]
    assert next((one.row, one.reason) for one in bad) == (3, "the header again; remove it where files were joined")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a Git LFS pointer"),
        (b"\x1f\x8b\x08\x00", "is compressed by gzip; add .gz"),
        (b"PK\x03\x04\x14", "is a ZIP archive or a workbook"),
        (b"PAR1\x15", "is Parquet"),
        (b"\n <!DOCTYPE HTML><html>", "is a web page"),
        (b"<!-- saved -->\n<html lang='en'>\n{a: b}\n", "is a web page"),
        ("\ufeff<html><body>a,b</body></html>".encode("utf-16-le"), "is a web page"),
        ("\ufeff<html><body>a,b</body></html>".encode(), "is a web page"),
        (b"\xef\xbb\xbfversion https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a Git LFS pointer"),
        (b"<?xml version='1.0'?><rows/>", "is XML"),
        (b"%PDF-1.4\n", "is a PDF"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "is a workbook"),
        (b"7z\xbc\xaf'\x1c", "is a 7z archive"),
        (b"\x80\x04\x95\x10", "is a pickle, which is never read"),
        (b"Obj\x01\x04", "is an Avro file"),
        (b'{"query": "tv", "title": "a"}\n', r"is JSON, not a table; .* \.jsonl"),
        (b'{"message": "Not Found"}', "is JSON, not a table"),
        ("query,title\n".encode("utf-16-le"), "the header holds NUL characters; set data.encoding"),
    ],
)
def test_files_of_another_format_are_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)
    if "web page" in message or "LFS" in message:
        with pytest.raises(UserError, match=message):
            read(tmp_path, content, "data.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.parquet", b"ARROW1\0\0", "is an Arrow file; write it as Parquet"),
        ("data.parquet", b"\x1f\x8b\x08\x00", "is compressed by gzip"),
        ("data.parquet", b"query,title\n" * 9, "the file cannot be read"),
        ("data.jsonl", b"query,title\ntv,a\n", r"if the file is a table, let its name end in \.csv"),
    ],
)
def test_a_name_that_says_another_format(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, content, name)


def test_nul_characters_in_json_lines_are_named(tmp_path):
    text = '{"query": "q", "title": "t"}\n'
    with pytest.raises(UserError, match=r"a NUL character: the file may be UTF-16, see data\.encoding"):
        read(tmp_path, text.encode("utf-16-le"), "data.jsonl")
    assert len(read(tmp_path, text.encode("utf-16"), "data.jsonl")[0]) == 1


@given(st.binary(max_size=60), st.integers(0, 12), st.sampled_from(["auto", "none", "standard", "backslash"]))
def test_every_line_is_accounted_for(noise, index, quoting):
    lines = table(plain_titles()).encode().splitlines(keepends=True)[1:]
    lines[index:index] = noise.splitlines(keepends=True)
    read_lines = [b"query,title,label\n", *lines]
    rows = list(delimited_rows(read_lines, "f", "utf-8", default_delimiter=",", reading=ReadOptions(quoting=quoting)))
    covered = [raw for _, _, raw in rows]
    blank = [line for line in lines if not line.strip()]
    # Nothing is read twice, in another order or not at all.
    assert b"".join(covered) == b"".join(lines) or len(b"".join(covered)) + len(b"".join(blank)) >= len(b"".join(lines))
    assert [number for number, _, _ in rows] == sorted({number for number, _, _ in rows})


def test_random_quotes_lose_no_row(tmp_path):
    rng = random.Random(7)
    for _ in range(200):
        titles = plain_titles(30)
        for index in rng.sample(range(30), rng.randint(1, 6)):
            title = titles[index]
            titles[index] = rng.choice(
                [f'"{title}', f'{title}"', f'{title[:3]}"{title[3:]}', f'"{title}"', f'"a" {title}']
            )
        pairs, bad = read(tmp_path, table(titles))
        assert len(pairs) + len(bad) == 30
        assert len(bad) <= 6
        assert not any("\n" in title for title in titles_of(pairs))


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        ("query,title,label", "tv,stand", "a line end inside a cell, whose cell wants quotes, cuts a row in two"),
        ("query\ttitle\tlabel", "tv\tstand", "a line end inside a cell cuts a row in two"),
        (
            "query,title,label",
            "tv;stand;Exact",
            "separated by a semicolon, those of the header by a comma",
        ),
        ("query,title,label", "tv\tstand\tExact", "its cells are separated by a tab"),
        ("query;title;label", "tv,stand,Exact", "separated by a comma, those of the header by a semicolon"),
        ("query,title,label", "tv,stand, black,Exact", "quote a cell that holds the delimiter"),
        (
            "query\ttitle\tlabel",
            "tv\tstand\tblack\tExact",
            "leave a tab out of a cell, or quote it",
        ),
        ("query\ttitle\tlabel", 'tv\t"stand\tblack"\tExact', "set data.quoting to standard"),
    ],
)
def test_a_row_with_too_few_or_many_cells_gets_its_own_advice(tmp_path, header, line, message):
    separator = header[5]
    rows = [separator.join(("mug", f"m{i}", "Exact")) for i in range(3)]
    _, bad = read(tmp_path, "\n".join([header, *rows, line, ""]))
    assert [one.row for one in bad] == [5]
    assert message in bad[0].reason


@pytest.mark.parametrize("end", ["\n\r", "\r\r\n", "\r\r", "\n\n"])
@pytest.mark.parametrize("last", [True, False])
def test_odd_ends_of_lines(tmp_path, end, last):
    text = table(plain_titles()).replace("\n", end)
    pairs, bad = read(tmp_path, text if last else text.removesuffix(end))
    assert (titles_of(pairs), bad) == (plain_titles(), [])


def test_what_a_database_writes_for_an_empty_cell_is_empty(tmp_path):
    pairs, bad = read(tmp_path, "query,title,brand,label\ntv,stand,\\N,Exact\nmug,\\N,x,Exact\nhat,\\\\N,x,Exact\n")
    assert [(pair.item.title, pair.item.brand) for pair in pairs] == [("stand", ""), ("\\\\N", "x")]
    assert [(one.row, one.reason) for one in bad] == [(3, "blank title")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('query,title,label\ntv,"55\\" stand",Exact\n', "set data.quoting to backslash"),
        ('query,title,label\ntv,"55" stand",Exact\n', "double a quote inside a cell, or see data.quoting"),
        ("# exported\nquery,title,label\ntv,stand,Exact\n", "first line must name all columns; remove lines before"),
        ("query\x01title\x01label\ntv\x01stand\x01Exact\n", r"set data\.delimiter to '\\x01'"),
        ("query^title^label\ntv^stand^Exact\n", r"set data\.delimiter to '\^'"),
        ('query,"title,label\n' + "x" * 140_000, "the header is broken"),
    ],
)
def test_a_file_of_another_dialect_names_what_mends_it(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"query": "a", "title": "b"},\n{"query": "a", "title": "c"},\n]\n', "the file is one JSON array"),
        ('{"query": "a", "title": "b"},\n{"query": "a", "title": "c"},\n', "the lines of a JSON array"),
        ('{"query": "a", "title": "b"}{"query": "a", "title": "c"}\n', "one object a line"),
        ('{\n  "query": "a",\n  "title": "b"\n}\n', "an object goes over several lines"),
        ("{'query': 'a', 'title': 'b'}\n", "single quotes: written by Python's str"),
        ('\x1e{"query": "a", "title": "b"}\n', "a record separator"),
    ],
)
def test_json_that_is_not_one_object_a_line_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text, "data.jsonl")


def test_blanks_behind_closing_quotes_are_no_text(tmp_path):
    text = 'query,title,brand\n"tv" ,"a, b"  ,"c" \ntv,"two" x,c\n"tv","d ""x"" , e" ,f\n'
    pairs, bad = read(tmp_path, text, for_prediction=True)
    assert [(pair.query, pair.item.title, pair.item.brand) for pair in pairs] == [
        ("tv", "a, b", "c"),
        ("tv", 'd "x" , e', "f"),
    ]
    assert [(one.row, "broken quotes" in one.reason) for one in bad] == [(3, True)]


@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.jsonl"])
@pytest.mark.parametrize(
    "line", ["version https://git-lfs.github.com/spec/v1", f"oid sha256:{'0' * 64}", "<!DOCTYPE html>"]
)
def test_a_pointer_among_rows_is_named(tmp_path, name, line):
    rows = ["tv\ta", line, "tv\tb"]
    text = "query\ttitle\n" + "\n".join(rows) + "\n"
    if name.endswith(".csv"):
        text = text.replace("\t", ",")
    if name.endswith(".jsonl"):
        text = '{"query": "tv", "title": "a"}\n' + line + '\n{"query": "tv", "title": "b"}\n'
    pairs, (bad,) = read(tmp_path, text, name, for_prediction=True)
    assert titles_of(pairs) == ["a", "b"]
    assert "a line of a Git LFS pointer or a web page: fetch the file itself" in bad.reason


def test_the_rest_of_a_title_is_no_pointer(tmp_path):
    _, (bad,) = read(tmp_path, "query,title,brand\ntv,a,b\nsize 10\n", for_prediction=True)
    assert "1 cells, but the header has 3" in bad.reason
    assert "pointer" not in bad.reason

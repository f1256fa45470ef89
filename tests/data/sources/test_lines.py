"""Lines of blocks, and JSON lines: the same wherever a block ends, and whichever decoder reads them."""

import itertools
import json

import pytest

from jax_rele.data.rows import RowError, read_json
from jax_rele.data.sources.readers import _split_lines


@pytest.mark.parametrize("content", [b"ab\r\nc\rd\n\ne", b"\r\n\r\r\n\n", b"a", b"", b"\n", b"a\r", b"\ra\n\r"])
def test_lines_do_not_depend_on_the_blocks(content):
    for size in range(1, len(content) + 2):
        blocks = [content[start : start + size] for start in range(0, len(content), size)]
        assert list(itertools.chain.from_iterable(_split_lines(blocks))) == content.splitlines(keepends=True)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        '{"a" : 1, "a":2}',
        '{"a":{"b":1,"b":2}}',
        '{"a":[{"b":1,"b":"x:y"}]}',
        '{"a":{"b":1},"a":3}',
        '{"\\u0061": ":", "a": 1}',
        '{"a\\":": 1, "a\\":": 2}',
    ],
)
def test_a_key_that_stands_twice_is_refused(text):
    for line in (text, f"{text}\n", f" {text}", f'{{"x":{text}}}\r\n'):
        with pytest.raises(RowError, match="twice"):
            read_json(line)


@pytest.mark.parametrize(
    "text", ['{"a": "b: c", "d" : {"e": [1, {"f": 1.10}]}}', '{"a\\":": ":"}', "{}", "[1]", " {} "]
)
def test_json_is_read_as_it_is(text):
    assert read_json(text) == read_json(f"{text}\n") == json.loads(text)


@pytest.mark.parametrize("text", ["{} {}", '{"a": 1},', '{"a": 1}\x0b', "", "{", '{"a": 1}x'])
def test_what_is_more_or_less_than_one_value_is_refused(text):
    with pytest.raises(ValueError, match=r"Extra data|Expecting"):
        read_json(text)

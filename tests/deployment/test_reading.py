"""Commands without a config read files of every dialect, by the names of a config's `data`."""

import pytest

from jax_rele.cli.options import reading_options
from jax_rele.data import read_pairs
from jax_rele.deployment.index import read_items
from jax_rele.errors import UserError


def test_options_are_those_of_a_config():
    assert reading_options(["delimiter=tab", "quoting=standard"]) == {"delimiter": "\t", "quoting": "standard"}
    assert reading_options([]) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quoting=never"], r"data\.quoting"),
        (["delimiter=||"], r"data\.delimiter"),
        (["path=x"], "--data path: must be one of encoding, delimiter, quoting, html"),
        (["quoting"], "write NAME=VALUE"),
        (["html=text", "html=keep"], "is given twice"),
    ],
)
def test_what_a_config_refuses_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        reading_options(words)


def test_items_and_pairs_are_read_so(tmp_path):
    file = tmp_path / "data.csv"
    file.write_bytes('query^title\ncaf\xe9^"55" <b>stand</b>, black\n'.encode("cp1252"))
    reading = reading_options(["encoding=cp1252", "delimiter=^", "quoting=none", "html=text"])
    pairs, bad = read_pairs(file, label_names=(), for_prediction=True, **reading)
    assert [(pair.query, pair.item.title) for pair in pairs] == [("café", '"55" stand, black')]
    items = read_items(file, reading=reading)
    assert [item.title for item in items.items] == ['"55" stand, black']
    assert (bad, items.bad) == ([], ())

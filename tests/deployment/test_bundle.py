"""A bundle that is damaged anywhere is refused in one line, whatever reads it."""

import copy
import json
import shutil

import pytest

from jax_rele.deployment.bundle import Tier, read_manifest, set_tiers
from jax_rele.deployment.scorer import load_bundle
from jax_rele.errors import UserError
from jax_rele.io import hash_file

OTHERS = (None, [], {}, "x", "", -1, 0, 0.5, 10**30, float("nan"), float("inf"), True, "\ud800")


@pytest.fixture(params=["cross_encoder", "two_tower"])
def folder(request, cross_bundle, tower_bundle, tmp_path):
    shutil.copytree({"cross_encoder": cross_bundle, "two_tower": tower_bundle}[request.param], tmp_path / "bundle")
    return tmp_path / "bundle"


def paths(value, path=()):
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from paths(child, (*path, key))


def at(values, path):
    for key in path:
        values = values[key]
    return values


def refusal(folder):
    """The message, or None where the bundle is accepted."""
    try:
        load_bundle(folder, threads=1).predict([("red shoe", "red shoe")])
    except UserError as error:
        message = str(error)
    else:
        return None
    assert "\n" not in message
    assert str(folder) in message
    return message


def damaged(values):
    """(what was done, the values with it) for every field removed, and replaced by every other."""
    for path in paths(values):
        *parents, last = path
        removed = copy.deepcopy(values)
        del at(removed, parents)[last]
        yield f"without {path}", removed
        for other in OTHERS:
            if type(other) is not type(at(values, path)) or other != at(values, path):
                replaced = copy.deepcopy(values)
                at(replaced, parents)[last] = other
                yield f"{path} = {other!r:.20}", replaced


@pytest.mark.slow
def test_no_field_can_be_removed_or_replaced(folder):
    path = folder / "bundle.json"
    values = json.loads(path.read_text())
    for name, changed in damaged(values):
        path.write_text(json.dumps(changed))
        expected = name in ("without ('checksum',)", "('checksum',) = None")
        assert (refusal(folder) is None) == expected, name
    # Of one without a checksum, as earlier versions wrote, some changes cannot be seen, but none ends in a traceback.
    del values["checksum"]
    accepted = []
    for name, changed in damaged(values):
        path.write_text(json.dumps(changed))
        if refusal(folder) is None:
            accepted.append(name)
    for part in ("'model'", "'query_length'", "'item_length'", "'has_verdicts'", "'files'", "'format'", "'positive'"):
        assert not [name for name in accepted if part in name and "'files', " not in name], accepted


def test_each_kind_of_damage_is_named(folder):
    path = folder / "bundle.json"
    values = json.loads(path.read_text())
    graph = next(name for name in values["files"] if name.endswith(".onnx"))
    for changes, part in (
        ({"format": 2}, "the bundle is of format 2, this version reads 1"),
        ({"format": True}, "the bundle is of format True"),
        ({"recipe": "other"}, "was changed since the bundle was written"),
        ({"fields": ["brand", "price"]}, "'price' is none of an item's texts"),
        ({"labels": values["labels"] | {"aliases": {"E": "Good"}}}, "'Good', which is none of the labels"),
        ({"temperature": float("nan")}, "temperature"),
        ({"files": values["files"] | {"../x": "0"}}, "'../x' is no name of a file in the folder"),
        ({"surprise": 1}, "surprise"),
        ({"query_length": 0}, "query_length"),
    ):
        path.write_text(json.dumps(values | changes))
        assert part in refusal(folder)
    path.write_text(json.dumps(values)[:-1] + ', "recipe": "mkd"}')
    assert "the key 'recipe' twice" in refusal(folder)
    for content in (b"", b"[]", b"null", b"\xff\xfe", b"{", b"[" * 100_000):
        path.write_bytes(content)
        assert "damaged" in refusal(folder)
    del values["checksum"]
    for changes in ({"dimensions": values["dimensions"][:-1]}, {"has_verdicts": False}):
        path.write_text(json.dumps(values | changes))
        assert "the sizes of its output verdict_logits are" in refusal(folder)
    path.write_text(json.dumps(values))
    assert refusal(folder) is None
    (folder / graph).write_bytes((folder / graph).read_bytes()[:1000])
    assert f"{graph}: was changed since the bundle was written" in refusal(folder)
    path.write_text(json.dumps(values | {"files": values["files"] | {graph: hash_file(folder / graph)}}))
    assert "ONNX Runtime cannot load it" in refusal(folder)
    (folder / graph).unlink()
    assert f"{graph}: the bundle lacks this file" in refusal(folder)


def test_tiers_change_neither_the_checksum_nor_the_identity(folder):
    before = read_manifest(folder)
    tiers = (Tier(name="relevant", least=0.7), Tier(name="shown", least=0.0), Tier(name="best", least=1.0))
    set_tiers(folder, tiers)
    after = read_manifest(folder)
    assert after.identity == before.identity
    names = [after.tier_of(score) for score in (0.0, 0.69, 0.7, 0.99, 1.0)]
    assert names == ["shown", "shown", "relevant", "relevant", "best"]
    assert before.tier_of(1.0) is None

import json
from pathlib import Path

import pytest

import jax_rele
from jax_rele.config import RationaleConfig
from jax_rele.types import Item, Pair, Tag

TAG_MAP = RationaleConfig().tag_map


@pytest.fixture(scope="session")
def dimensions():
    return ("category", "brand", "model", "color", "material", "size", "audience")


@pytest.fixture(scope="session")
def tag_map():
    return TAG_MAP


@pytest.fixture(scope="session")
def sample():
    path = Path(jax_rele.__file__).parent / "data" / "sample" / "esci_tiny_us.jsonl"
    return [_pair(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()[:477]]


def _pair(row):
    product, tagged = row["product"], row.get("queryner")
    item = Item(
        product["id"],
        product["title"],
        brand=product["brand"] or "",
        color=product["color"] or "",
        bullets=product["bullets"] or "",
    )
    return Pair(row["pair_id"], row["query"], item, row["label"], tags=tagged and _tags(**tagged))


def _tags(tokens, labels):
    segments = []
    for token, label in zip(tokens, labels, strict=True):
        if label.startswith("B-"):
            segments.append((label[2:], [token]))
        elif label.startswith("I-"):
            segments[-1][1].append(token)
    return tuple(Tag(" ".join(words), kind) for kind, words in segments)

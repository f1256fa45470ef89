"""What labels and dimensions mean, in the words of a prompt, where a config does not say it."""

from __future__ import annotations

from collections.abc import Mapping

LANGUAGES = ("en", "zh")
"""Languages of the prompts that come with the package."""

LABELS = {
    "en": {
        "Exact": "the item is what the query asks for and meets every requirement that the query states.",
        "Substitute": "the item is not quite what the query asks for: it misses some requirement, but can be used in "
        "its place.",
        "Complement": "the item does not serve the query by itself, but is used together with an item that would.",
        "Irrelevant": "the item is not what the query asks for, or misses a central requirement.",
    },
    "zh": {
        "Exact": "商品正是查询所要的，并满足查询中的每一项要求。",
        "Substitute": "商品与查询不完全一致：有某项要求未满足，但可以作为替代品使用。",
        "Complement": "商品本身不能满足查询，但会与能满足查询的商品搭配使用。",
        "Irrelevant": "商品不是查询所要的，或缺少查询中的核心要求。",
    },
}
"""{language: {label of ESCI: definition}}, after arXiv 2206.06588."""

DIMENSIONS = {
    "en": {
        "category": "the kind of product, without brand, color or size",
        "brand": "the maker, or the name under which it is sold",
        "model": "the name or number of a model, series or version",
        "color": "colors and color patterns",
        "material": "what it is made of",
        "size": "measures, amounts, capacities and clothing sizes",
        "audience": "for whom it is: gender, age or kind of user",
    },
    "zh": {
        "category": "商品的种类，不含品牌、颜色和尺寸",
        "brand": "制造商或销售品牌",
        "model": "型号、系列或版本的名称或编号",
        "color": "颜色与花色",
        "material": "材质",
        "size": "尺寸、数量、容量和服装尺码",
        "audience": "适用人群：性别、年龄或使用者类型",
    },
}
"""{language: {dimension: description}}."""


def describe(own: Mapping[str, str], defaults: Mapping[str, str]) -> dict[str, str]:
    """{name: description}: a config's own, or the default one where that is empty; empty where there is none."""
    return {name: meaning or defaults.get(name, "") for name, meaning in own.items()}

"""What labels and dimensions mean, in the words of a prompt, where a config does not say it."""

from __future__ import annotations

from collections.abc import Mapping

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
    "ja": {
        "Exact": "商品がクエリの求めるものであり、クエリのすべての条件を満たす。",
        "Substitute": "商品がクエリの求めるものと完全には一致せず、満たさない条件があるが、代わりに使える。",
        "Complement": "商品だけではクエリの求めに応えないが、応える商品と一緒に使われる。",
        "Irrelevant": "商品がクエリの求めるものではない、または中心となる条件を満たさない。",
    },
    "es": {
        "Exact": "el artículo es lo que pide la búsqueda y cumple todos los requisitos que esta indica.",
        "Substitute": "el artículo no es del todo lo que pide la búsqueda: no cumple algún requisito, pero puede "
        "usarse en su lugar.",
        "Complement": "el artículo por sí solo no satisface la búsqueda, pero se usa junto con otro que la satisface.",
        "Irrelevant": "el artículo no es lo que pide la búsqueda, o no cumple un requisito esencial.",
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
    "ja": {
        "category": "商品の種類（ブランド、色、サイズは含まない）",
        "brand": "製造元、または販売時のブランド名",
        "model": "型番、シリーズ、バージョンの名称や番号",
        "color": "色と柄",
        "material": "素材",
        "size": "寸法、数量、容量、衣類のサイズ",
        "audience": "対象者：性別、年齢、利用者の種類",
    },
    "es": {
        "category": "el tipo de producto, sin marca, color ni tamaño",
        "brand": "el fabricante o la marca con la que se vende",
        "model": "nombre o número de un modelo, una serie o una versión",
        "color": "colores y estampados",
        "material": "de qué está hecho",
        "size": "medidas, cantidades, capacidades y tallas de ropa",
        "audience": "para quién es: sexo, edad o tipo de usuario",
    },
}
"""{language: {dimension: description}}."""


def describe(own: Mapping[str, str], defaults: Mapping[str, str]) -> dict[str, str]:
    """{name: description}: a config's own, or the default one where that is empty; empty where there is none."""
    return {name: meaning or defaults.get(name, "") for name, meaning in own.items()}

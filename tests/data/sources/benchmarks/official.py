"""Small files of exactly the official form of ESCI and WANDS, quirks included."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_NOUNS = ("chair", "table", "lamp", "rug", "mirror", "desk", "sofa", "bed", "shelf", "vase")
_COLORS = ("red", "blue", "green", "black", "white", "oak", "grey", "teal")
_BRANDS = ("Acme", "Umbra", "Nord", None)
_WORDS = {
    "us": ("{color} {noun} for kids", "{noun} without {color}"),
    "es": ("{noun} para niños {color}", "{color} {noun} pequeña"),
    "jp": ("子供用 {color} {noun}", "{noun} 小さい {color}"),
}
_LABELS = "ESCI"
SOURCES = ("behavioral", "negations", "parse_pattern", "other")


def write_esci(folder: Path, queries: int = 30, per_query: int = 5) -> tuple[list[dict], list[dict]]:
    """Writes the three files of ESCI; of six queries one is es, one jp, four us; a third is for testing.

    Quirks: nulls in every text but the title, HTML and entities in descriptions, several bullet points, a product that
    two queries share, one id in two locales with other texts, products that no example names, examples of the large
    version only.

    Returns:
      The rows of examples and of products.
    """
    folder.mkdir(parents=True, exist_ok=True)
    examples, products = [], []
    for q in range(queries):
        locale = {4: "es", 5: "jp"}.get(q % 6, "us")
        color, noun = _COLORS[q % 8], _NOUNS[(q // 6 + q) % 10]
        query = f"{_WORDS[locale][q % 2].format(color=color, noun=noun)} {q}"
        for n in range(per_query):
            product_id = f"B{q // 6:04d}{(q - 1 if n == 0 and q % 6 in (1, 2) else q) % 6}{n}"
            if locale != "us":
                product_id = f"B{q // 6:04d}0{n}"  # the ids of the first us query of the six
            examples.append(
                {
                    "example_id": len(examples) * 3,
                    "query": query,
                    "query_id": q * 7,
                    "product_id": product_id,
                    "product_locale": locale,
                    "esci_label": _LABELS[n % 4],
                    "small_version": int(q % 4 != 3),
                    "large_version": 1,
                    "split": "test" if (q // 6 + q) % 3 == 2 else "train",
                }
            )
            products.append(_esci_product(product_id, locale, color, noun, n))
    products = list({(row["product_id"], row["product_locale"]): row for row in products}.values())
    products.append(_esci_product("UNJUDGED", "us", "pink", "harp", 1))
    pq.write_table(
        pa.Table.from_pylist(examples), folder / "shopping_queries_dataset_examples.parquet", row_group_size=64
    )
    pq.write_table(
        pa.Table.from_pylist(products[::-1]), folder / "shopping_queries_dataset_products.parquet", row_group_size=64
    )
    lines = ["query_id,source", *(f"{q * 7},{SOURCES[q % 4]}" for q in range(queries))]
    (folder / "shopping_queries_dataset_sources.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return examples, products


def _esci_product(product_id: str, locale: str, color: str, noun: str, n: int) -> dict:
    other = _COLORS[(_COLORS.index(color) + 3) % 8] if color in _COLORS else color
    return {
        "product_id": product_id,
        "product_title": f"{color if n % 2 == 0 else other} {noun} model {n} ({locale}) & more",
        "product_description": (
            None,
            f"<p>A {color} <b>{noun}</b>.</p><ul><li>light &amp; strong</li><li>&lt; 5 kg</li></ul>",
            f"A {noun}, <5 kg and >2 kg heavy",
        )[n % 3],
        "product_bullet_point": None if n % 4 == 3 else f"Made of wood\nFor {noun}&nbsp;lovers<br>size: {n}",
        "product_brand": _BRANDS[n % 4],
        "product_color": None if n % 5 == 4 else (color if n % 2 == 0 else other),
        "product_locale": locale,
    }


def write_wands(folder: Path, queries: int = 30, per_query: int = 5) -> tuple[list[dict], list[dict], list[dict]]:
    """Writes the three files of WANDS.

    Quirks: quotes inside quoted fields, gaps in the ids, queries without class, products without description, features,
    ratings or class, two classes, features with and without blanks, of one name twice, without a name, HTML.

    Returns:
      The rows of queries, products and labels, as texts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked, products, labels = [], [], []
    for q in range(queries):
        color, noun = _COLORS[q % 8], _NOUNS[q % 10]
        asked.append(
            {
                "query_id": str(q + q // 10),
                "query": f'{color} {noun} {q}"' if q % 7 == 3 else f"{color} {noun} {q}",
                "query_class": "" if q % 6 == 5 else f"{noun.title()}s",
            }
        )
        for n in range(per_query):
            products.append(_wands_product(str(len(products)), _COLORS[(q + n) % 8], noun, n))
            label = ("Exact", "Partial", "Irrelevant")[n % 3]
            labels.append({"query_id": asked[-1]["query_id"], "product_id": products[-1]["product_id"], "label": label})
        if q:  # a product that was judged for another query
            labels.append({"query_id": asked[-1]["query_id"], "product_id": "0", "label": "Irrelevant"})
    labels = [{"id": str(2 * i), **row} for i, row in enumerate(labels)]
    for name, rows in (("query.csv", asked), ("product.csv", products), ("label.csv", labels)):
        write_tab_separated(folder / name, rows)
    return asked, products, labels


def write_tab_separated(path: Path, rows: list[dict]) -> None:
    """Writes a file as WANDS writes its own."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _wands_product(product_id: str, color: str, noun: str, n: int) -> dict:
    return {
        "product_id": product_id,
        "product_name": f"{color} {noun} 27.5 '' wide",
        "product_class": ("", f"{noun.title()}s", f"Teen Furniture|{noun.title()}s")[n % 3],
        "category hierarchy": "" if n % 3 == 0 else f"Furniture / Living Room Furniture / {noun.title()}s & More",
        "product_description": (
            "",
            f'<p>a {color} {noun} , 48" wide .</p><br/>sturdy &amp; safe',
            f"a {noun}\twith a tab\nand a line break",
        )[n % 3],
        "product_features": (
            "",
            f"color : {color}|overallwidth-sidetoside:64.7|material : steel| : gray wood|color : {color}",
            f"features : folds|features : has <b>wheels</b>|color:{color}|size : 3:4|color : white",
        )[n % 3],
        "rating_count": "" if n % 4 == 3 else f"{n * 5}.0",
        "average_rating": "" if n % 4 == 3 else "4.5",
        "review_count": "" if n % 4 == 3 else f"{n}.0",
    }

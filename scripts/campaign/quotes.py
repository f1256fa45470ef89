"""Generated CSV files, honest and damaged: rows that a quote took in without a word, and texts refused for nothing.

    python scripts/campaign/quotes.py [--files 2000] [--seed 0]

Files have 2 to 7 columns, four delimiters, four styles of quoting, and 8 to 120 rows. Honest ones have texts of several
lines: prose, lists, specifications, JSON, tables, Chinese and Japanese, with quotes and delimiters with and without a
blank. Damaged ones have inch marks and quotes that were not doubled, cells that were cut, quotes doubled in cells
without quotes, quotes around the header alone; mixed ones have both.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from common import seeded, table

from jax_rele.data.rows import RowError
from jax_rele.data.sources.delimited import delimited_rows

WORDS = ("red", "blue", "tv", "mug", "lamp", "hat", "sofa", "rug", "steel", "wood", "wide", "small", "pack", "of")
WORDS += ("for", "with", "and", "the", "kids", "12", "3", "M8", "XL")
QUERIES = ("tv stand", "coffee mug", "desk lamp", "sun hat", "corner sofa", "rug 2x3", "cup", "pen", "usb cable")
LABELS = ("Exact", "Substitute", "Complement", "Irrelevant")
BRANDS = ("Acme", "Umbra", "Nordic Home", "", "O'Neil", "3M", "Zoë")
KINDS = ("honest", "damaged", "mixed")
UNQUOTED, MINIMAL, NONNUMERIC, ALL = STYLES = ("unquoted", "minimal", "nonnumeric", "all")


@dataclass(frozen=True)
class Table:
    """A file and what is true of it.

    Attributes:
      text: of the file.
      delimiter: between cells.
      starts: the line in which each row begins, from 1, the header apart.
      cells: of each row; None where the row is damaged.
      cut: the lines of rows that end within the cell whose quote is open.
    """

    text: str
    delimiter: str
    starts: list[int]
    cells: list[list[str] | None]
    cut: set[int]


def words(rng: random.Random, low: int = 2, high: int = 6) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def line_of_text(rng: random.Random) -> str:
    kind = rng.randrange(14)
    if kind < 4:
        return f"{words(rng)}, {words(rng)}{rng.choice(['.', ',', '', ' and more, too'])}"
    return {
        4: lambda: f"- {words(rng)}",
        5: lambda: f"{words(rng, 1, 1)},{words(rng, 1, 2)},{words(rng, 1, 1)}",
        6: lambda: f"{rng.randint(1, 9)},{rng.randint(1, 99)} kg",
        7: lambda: f"'{words(rng, 1, 1)}': {rng.randint(1, 99)},",
        8: lambda: f'a {rng.randint(1, 60)}" screen',
        9: lambda: f'the "{words(rng, 1, 2)}", {words(rng)}',
        10: lambda: "".join(rng.choice("红色杯子台灯沙发，,、。") for _ in range(rng.randint(4, 20))),
        11: lambda: ";".join(words(rng, 1, 2) for _ in range(rng.randint(1, 5))),
        12: lambda: "",
        13: lambda: f"{words(rng, 1, 1)}|{words(rng, 1, 1)}\t{rng.randint(1, 9)},{words(rng, 1, 2)}",
    }[kind]()


def text_of_lines(rng: random.Random) -> str:
    return rng.choice(["\n", "\n", "\r\n"]).join(line_of_text(rng) for _ in range(rng.randint(2, 8)))


def columns_of(rng: random.Random) -> list[str]:
    optional = [name for name in ("label", "brand", "price", "description", "id") if rng.random() < 0.55]
    names = ["query", "title", *optional]
    rng.shuffle(names)
    return names


def cell_of(name: str, number: int, rng: random.Random, several: float, delimiter: str) -> str:
    plain = {
        "query": lambda: rng.choice(QUERIES) if rng.random() < 0.8 else words(rng, 1, 3),
        "label": lambda: rng.choices(LABELS, (5, 3, 1, 2))[0],
        "brand": lambda: rng.choice(BRANDS),
        "price": lambda: f"{rng.randint(1, 99)}.{rng.randint(10, 99)}",
        "id": lambda: f"B{number:05d}X{rng.randint(0, 99)}",
        "title": lambda: words(rng, 3, 8),
        "description": lambda: words(rng, 3, 12),
    }[name]
    if name in ("title", "description") and rng.random() < several:
        return text_of_lines(rng)
    if name == "title" and several and rng.random() < 0.2:
        return f'{words(rng)}{delimiter} {rng.randint(5, 60)}" {words(rng)}'
    return plain()


def written(cells: Sequence[str], style: str, delimiter: str) -> str:
    """A row by its writer; one that does not quote leaves delimiters and line ends out of its cells."""

    def one(cell: str) -> str:
        special = any(character in cell for character in f'{delimiter}"\r\n')
        number = cell.replace(".", "", 1).isdigit()
        quoted = style == ALL or special or (style == NONNUMERIC and not number)
        return '"' + cell.replace('"', '""') + '"' if quoted else cell

    if style == UNQUOTED:
        return delimiter.join(cell.replace(delimiter, " ") for cell in cells)
    return delimiter.join(map(one, cells))


def damage(
    rows: list[list[str]], at: int, names: Sequence[str], delimiter: str, rng: random.Random
) -> tuple[dict[int, str], bool]:
    """Lines of the rows from `at` on, of which a quote takes in some, and whether the first is cut in its cell."""
    column = rng.choice([names.index("title"), names.index("title"), rng.randrange(len(names))])
    last = min(at + rng.randint(1, 4), len(rows) - 1)
    end = column if rng.random() < 0.85 else rng.randrange(len(names))
    lines = {index: list(rows[index]) for index in range(at, last + 1)}
    for index, cells in lines.items():
        lines[index] = [cell.replace('"', "") for cell in cells]
    lines[at][column] = '"' + lines[at][column]
    kind = rng.randrange(6)
    for index in range(at + 1, last):
        if rng.random() < 0.25:  # quotes doubled in a cell without quotes
            lines[index][rng.randrange(len(names))] += ' 13""'
        if rng.random() < 0.1:
            lines[index].append("surplus")
    if kind == 0:  # the row is cut in its cell
        lines[at] = lines[at][: column + 1]
    if kind == 1:  # doubled inside the first cell
        lines[at][column] += ' ""x"" y'
    if rng.random() < 0.85:
        lines[last][end] += rng.choice([' 55"', '"'])
    return {index: delimiter.join(cells) for index, cells in lines.items()}, kind == 0


def make_table(kind: str, rng: random.Random) -> Table:
    delimiter = rng.choice(",,,;|\t")
    names = columns_of(rng)
    style = rng.choice(STYLES[1:]) if kind != "damaged" else rng.choice(STYLES)
    several = {"honest": rng.choice([0.02, 0.3, 1.0]), "mixed": rng.choice([0.05, 0.3]), "damaged": 0.0}[kind]
    rows = [
        [cell_of(name, number, rng, several, delimiter) for name in names]
        for number in range(rng.choice([8, 30, 60, 120]))
    ]
    if "query" in names and rng.random() < 0.5:
        rows.sort(key=lambda row: row[names.index("query")])
    damaged: dict[int, str] = {}
    cut: set[int] = set()
    at = rng.randrange(4)
    while kind != "honest" and at < len(rows) - 1:
        plain = [[cell.replace("\n", " ").replace("\r", " ").replace(delimiter, " ") for cell in row] for row in rows]
        changed, is_cut = damage(plain, at, names, delimiter, rng)
        if is_cut:
            cut.add(at)
        damaged |= changed
        at = max(changed) + rng.randint(2, 25)
    quoted_header = style in (NONNUMERIC, ALL) or delimiter == "\t" or rng.random() < 0.3
    lines = [written(names, ALL if quoted_header else MINIMAL, delimiter)]
    lines += [damaged.get(index) or written(row, style, delimiter) for index, row in enumerate(rows)]
    end = rng.choice(["\n", "\r\n"])
    starts, line = [], 1
    for row in lines:
        starts.append(line)
        line += len(row.replace("\r\n", "\n").split("\n"))
    return Table(
        "".join(row + end for row in lines),
        delimiter,
        starts[1:],
        [None if index in damaged else row for index, row in enumerate(rows)],
        {starts[index + 1] for index in cut},
    )


def count(generated: Table) -> tuple[Counter[str], list[str]]:
    """What reading a file gives, and examples of what went wrong."""
    tally: Counter[str] = Counter(files=1, rows=len(generated.starts))
    examples = []
    lines = generated.text.encode().splitlines(keepends=True)
    begins = set(generated.starts)
    honest = {start: cells for start, cells in zip(generated.starts, generated.cells) if cells is not None}
    texts = {start for start, cells in honest.items() if any("\n" in cell for cell in cells)}
    tally["texts"] = len(texts)
    read: set[int] = set()
    for first, row, raw in delimited_rows(lines, "f", "utf-8", default_delimiter=","):
        n_lines = len(raw.splitlines())
        within = sorted(begins & set(range(first + 1, first + n_lines)))
        if isinstance(row, RowError):
            tally["refused"] += 1
            if first in texts and "data.quoting" not in str(row):
                tally["unnamed"] += 1
            continue
        if within:
            tally["silent, cut" if first in generated.cut else "silent"] += 1
            examples.append(("silent, cut: " if first in generated.cut else "silent: ") + raw.decode())
        elif first not in begins:
            tally["garbage"] += 1
            examples.append("garbage: " + raw.decode())
        elif first in honest and len(row) == len(honest[first]):
            read.add(first)
    tally["damaged"] = len(begins) - len(honest)
    tally["texts refused"] = len(texts - read)
    tally["rows refused"] = len(honest.keys() - texts - read)
    examples += [f"refused: line {start}: {honest[start]}" for start in sorted(texts - read)]
    return tally, examples


COLUMNS = (
    "files",
    "rows",
    "texts",
    "damaged",
    "silent",
    "silent, cut",
    "garbage",
    "texts refused",
    "rows refused",
    "unnamed",
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000, help="of each kind; 2000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=0, help="of what went wrong; 0")
    options = parser.parse_args(arguments)
    rows, silent = [], 0
    for kind in KINDS:
        rng, total = seeded(options.seed, kind), Counter[str]()
        shown: list[str] = []
        for _ in range(options.files):
            tally, examples = count(make_table(kind, rng))
            total.update(tally)
            shown += examples
        silent += total["silent"]
        rows.append([kind, *(total[name] for name in COLUMNS)])
        for example in shown[: options.examples]:
            print(kind, example, file=sys.stderr)
    print(table(["kind", *COLUMNS], rows))
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())

"""Generated rows through every reader, and generated strings through the two parsers of what models write.

    python scripts/campaign/fuzz.py [--rows 2000] [--strings 2000] [--formats csv tsv jsonl parquet] [--seed 0]

Rows: files of a grammar (good rows; rows that are damaged in some way; encodings, compressions, sizes, nesting) are
read by `jax_rele.data.pairs.ingest`, as the stage prepare does. Every record carries a mark of its own at its start.
After each file every mark must be in exactly one pair, or in the quarantine, and no pair may hold the mark of another.

Strings: rationales and answers, rendered and then mutated, and strings of the grammars' pieces. `parse` gives a
rationale, or a ParseError; one that it reads renders to the same text. `parse_output` and `read_answer` give a
rationale or a failure.

Exits with 1 for a crash, a row that is not accounted for, or memory that grows. The whole run is
`--rows 1000000 --strings 1000000`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from common import resident, seeded, table

from jax_rele.annotation.answers import Failure, answer_form, read_answer
from jax_rele.config import DataConfig, LabelsConfig
from jax_rele.data.pairs.ingest import ingest
from jax_rele.errors import UserError
from jax_rele.rationale import ParseError, ParseFailure, parse, parse_output, render
from jax_rele.types import VERDICTS, Comparison, Rationale

FORMATS = ("csv", "tsv", "jsonl", "parquet")
ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "gb18030", "shift_jis", "iso-8859-5")
LABELS = LabelsConfig()
FILE_ROWS = 20_000
GROWTH_MB = 200.0
"""Memory may grow by this much after the first file of a format."""
COLUMNS = ("pair_id", "query", "title", "brand", "color", "label", "split", "query_frequency", "attributes.size")
CONTINUED = "second line"
"""Of a cell with two lines; after a quote that is never closed it may be a row of its own, which is bad."""
MARK = re.compile(r"zq\d{8}z")
ODD = (
    *(("query", ""), ("query", "\x00"), ("query", "\u200b\ufeff"), ("query", "x" * 150_000), ("title", "")),
    *(("title", "\x00\x00"), ("label", "Great"), ("label", "exact "), ("label", "3"), ("split", "trian")),
    *(("split", "valid"), ("query_frequency", "-1"), ("query_frequency", "many"), ("query_frequency", "9" * 400)),
    *(("query_frequency", "nan"), ("attributes.size", "{" * 2000)),
)
"""Values that a reader has to judge."""
ATOMS = (
    *("red shoe", "USB-C 2m", '12"', "5' tall", "a,b", "a\tb", "a;b|c:d", "x\\y", "\u00e9t\u00e9", "e\u0301te\u0301"),
    *(
        "鞋子 红色",
        "靴 赤い",
        "حذاء أحمر",
        "\u202eabc",
        "\u200b",
        "\ufeff",
        "\u2028",
        "👟🏽",
        "\ufb01ne",
        "\uff21\uff11",
    ),
    *("<b>&amp;</b>", "NULL", "nan", "-", "0", "1e400", "=1+1", "</item>", "label: Exact", "<|im_end|>", " ", "\x0b"),
)


# ---- rows


def text(rng: random.Random, most: int = 6) -> str:
    return " ".join(rng.choice(ATOMS) for _ in range(rng.randint(1, most)))


def record(rng: random.Random, mark: str) -> dict[str, object]:
    """A good row; one in ten judges a query and an item that others judge too."""
    twice = rng.random() < 0.1
    query = f"shoe {rng.randint(0, 3)}" if twice else f"{text(rng, 3)} {rng.randint(0, 10**6)}"
    title = f"shoe {rng.randint(0, 3)}" if twice else text(rng)
    values: dict[str, object] = {"pair_id": mark, "query": query, "title": title}
    for name, draw in (("brand", text), ("color", text), ("attributes.size", text)):
        values[name] = draw(rng, 2) if rng.random() < 0.5 else ""
    values["label"] = rng.choice([*LABELS.names, ""])
    values["split"] = ""
    values["query_frequency"] = rng.choice(["", "3", "3.0"])
    return values


def spoil(rng: random.Random, values: dict[str, object]) -> None:
    """Makes a row one that a reader has to judge: often bad, sometimes odd and good."""
    name, value = rng.choice(ODD)
    values[name] = value


def delimited(rng: random.Random, marks: Sequence[str], delimiter: str, encoding: str) -> bytes:
    """A CSV or TSV file. Cells are quoted where CSV asks for it; in TSV they hold no tab and no line end."""
    end = rng.choice(["\n", "\r\n"])
    header = delimiter.join(COLUMNS) + end
    lines = [header.encode(encoding, "ignore")]
    codec = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(encoding, encoding)
    for mark in marks:
        values = record(rng, mark)
        draw = rng.random()
        if draw < 0.15:
            spoil(rng, values)
        cells = [str(values[name]) for name in COLUMNS]
        if delimiter == "\t":
            cells = [re.sub(r'[\t\r\n"\x0b\u2028]', " ", cell) for cell in cells]
        elif rng.random() < 0.1:
            cells[2] += f"\n{CONTINUED}"
        if 0.15 <= draw < 0.17:
            cells = cells[: rng.randint(1, len(cells) - 1)]
        elif 0.17 <= draw < 0.19:
            cells += ["more"] * rng.randint(1, 3)
        buffer = io.StringIO()
        if delimiter == "\t":
            buffer.write("\t".join(cells) + end)
        else:
            csv.writer(buffer, lineterminator=end).writerow(cells)
        line = buffer.getvalue()
        if 0.19 <= draw < 0.21:  # a quote that is never closed, or inside of a cell
            line = delimiter.join([mark, rng.choice(['"open', 'in"side', '"a"b', '"']), "title"]) + end
        content = line.encode(codec, "ignore")
        if 0.21 <= draw < 0.23 and codec == "utf-8":
            content = content.replace(b"shoe", b"sh\xff\xfee", 1).replace(b"USB", b"\xc3(", 1)
        lines.append(content)
        if draw > 0.99:
            lines.append(end.encode(codec))
    return b"".join(lines)


def nested(rng: random.Random, depth: int) -> object:
    draw = rng.random()
    if depth <= 0 or draw < 0.3:
        return rng.choice([None, True, 0, -1.5, 1e308, "x", text(rng, 2), [], {}])
    if draw < 0.6:
        return [nested(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return {rng.choice(("id", "title", "a", "")): nested(rng, depth - 1) for _ in range(rng.randint(0, 3))}


def json_lines(rng: random.Random, marks: Sequence[str], encoding: str) -> bytes:
    lines = ["".encode(encoding)]  # the byte order mark, where the encoding has one
    codec = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(encoding, encoding)
    for mark in marks:
        values = record(rng, mark)
        draw = rng.random()
        if draw < 0.15:
            spoil(rng, values)
        row: dict[str, object] = {"pair_id": mark, "query": values["query"]}
        item = {"title": values["title"], "brand": values["brand"], "color": values["color"]}
        row |= {"item": item} if rng.random() < 0.7 else item
        row |= {"label": values["label"], "query_frequency": values["query_frequency"]}
        if 0.15 <= draw < 0.25:
            name = rng.choice(("query", "item", "label", "split", "query_tags", "query_frequency", "extra"))
            row[name] = nested(rng, 4)
        line = json.dumps(row, ensure_ascii=rng.random() < 0.5)
        if 0.25 <= draw < 0.33:
            line = rng.choice(
                [
                    line[: rng.randint(14 + len(mark), len(line))],
                    line[:-1] + ',"query":"again"}',
                    line[:-1] + ',"n":' + "[" * 5000 + "]" * 5000 + "}",
                    line[:-1] + ',"n":' + "9" * 5000 + "}",
                    line.replace('"query":', '"query":NaN,"q":', 1),
                    line.replace('"query":', '"query":Infinity,"q":', 1),
                    line[:-1] + ',"brand":"\\ud800"}',
                    f"[{line}]",
                    f'"{mark}"',
                    line.replace(": ", ":\x00 ", 1),
                ]
            )
        content = line.encode(codec, "ignore") + b"\n".decode().encode(codec)
        if 0.33 <= draw < 0.35 and codec == "utf-8":
            content = content[:-2] + b"\xff\n"
        lines.append(content)
    return b"".join(lines)


def parquet(rng: random.Random, marks: Sequence[str], path: Path) -> None:
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    for mark in marks:
        values = record(rng, mark)
        if rng.random() < 0.15:
            spoil(rng, values)
        for name in COLUMNS:
            columns[name].append(None if values[name] == "" and rng.random() < 0.5 else values[name])
    arrays: dict[str, pa.Array] = {}
    for name, cells in columns.items():
        raw = [None if cell is None else str(cell).encode("utf-8", "replace") for cell in cells]
        if name in ("brand", "color") and rng.random() < 0.5:  # invalid UTF-8, which Parquet does not check
            raw = [b"\xff" + cell if cell and rng.random() < 0.05 else cell for cell in raw]
        offsets = pa.array(raw, pa.binary())
        arrays[name] = pa.Array.from_buffers(pa.string(), len(offsets), offsets.buffers())
    if rng.random() < 0.3:
        arrays["query_frequency"] = pa.array([rng.choice([None, 1.0, float("nan"), 1e300, -3.0]) for _ in marks])
    if rng.random() < 0.3:
        pieces = [None if rng.random() < 0.5 else {"tokens": ["a"] * rng.randint(0, 2), "labels": ["O"]} for _ in marks]
        arrays["query_tags"] = pa.array(pieces)
    pq.write_table(pa.table(arrays), path, row_group_size=rng.choice([100, 5000, 100_000]))


def write_rows(rng: random.Random, form: str, marks: Sequence[str], folder: Path) -> tuple[Path, str]:
    """Writes a file of a format; returns it and its encoding."""
    if form == "parquet":
        parquet(rng, marks, folder / "rows.parquet")
        return folder / "rows.parquet", "utf-8"
    encoding = rng.choice(ENCODINGS)
    if form == "jsonl":
        content = json_lines(rng, marks, encoding)
    else:
        content = delimited(rng, marks, "," if form == "csv" else "\t", encoding)
    path = folder / f"rows.{form}"
    if rng.random() < 0.2:
        path, content = path.with_name(f"{path.name}.gz"), gzip.compress(content, 1)
    path.write_bytes(content)
    return path, encoding


def account(form: str, pairs: pa.Table, quarantine: pa.Table, marks: Sequence[str], counted: int) -> list[str]:
    """What is wrong with the account of a file: one line for each mark that is not in it exactly once."""
    faults = []
    seen = Counter(pairs["pair_id"].to_pylist())
    for row in pairs.select(["pair_id", "query", "item"]).to_pylist():
        others = set(MARK.findall(json.dumps(row, ensure_ascii=False))) - {row["pair_id"]}
        if others:
            faults.append(f"the pair {row['pair_id']} has swallowed {', '.join(sorted(others))}")
    reasons = {}
    for row in quarantine.to_pylist():
        inside = set(MARK.findall(row["raw"]))
        if not inside and form == "parquet":  # a row that cannot be read has a number and no text
            inside = {marks[row["row"] - 1]}
        seen.update(inside)
        reasons.update(dict.fromkeys(inside, row["reason"]))
        if not inside and CONTINUED not in row["raw"]:
            faults.append(f"a quarantined row without a mark: {row['reason']}: {row['raw'][:80]!r}")
    faults += [
        f"{mark} is accounted for {seen[mark]} times ({reasons.get(mark, '')})" for mark in marks if seen[mark] != 1
    ]
    faults += [f"{name} was never written" for name in seen.keys() - set(marks)]
    if counted != len(quarantine):
        faults.append(f"{counted} rows are counted as quarantined, {len(quarantine)} are there")
    return faults


def read_rows(form: str, rows: int, seed: int) -> tuple[list[object], list[str]]:
    """Generates and reads files of a format until `rows` rows are read: a line of the report, and what is wrong."""
    start, faults, memory = time.perf_counter(), [], []
    pairs = quarantined = refused = 0
    for number, first in enumerate(range(0, rows, FILE_ROWS)):
        rng = seeded(seed, form, number)
        marks = [f"zq{index:08d}z" for index in range(first, min(first + FILE_ROWS, rows))]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            path, encoding = write_rows(rng, form, marks, folder)
            data = DataConfig(path=str(path), encoding=encoding, max_bad_fraction=1.0)
            (folder / "out").mkdir()
            try:
                result = ingest(data, LABELS, seed, folder / "cache", folder / "out")
            except UserError as error:
                refused += len(marks)
                faults.append(f"{form} {number} ({encoding}): the file is refused: {error}")
                continue
            except Exception as error:
                faults.append(f"{form} {number} ({encoding}): crash: {type(error).__name__}: {error}"[:300])
                continue
            names = ("quarantined", "duplicates", "conflicts", "leaked")
            counted = sum(result.counts[name] for name in names)
            tables = [pq.read_table(folder / "out" / f"{name}.parquet") for name in ("pairs", "quarantine")]
            faults += [f"{form} {number} ({encoding}): {fault}" for fault in account(form, *tables, marks, counted)]
            pairs, quarantined = pairs + tables[0].num_rows, quarantined + tables[1].num_rows
        memory.append(resident())
    grown = memory[-1] - memory[0] if memory else 0.0
    if grown > GROWTH_MB:
        faults.append(f"{form}: memory grew by {grown:.0f} MB")
    sizes = f"{memory[0]:.0f} → {memory[-1]:.0f}" if memory else "-"
    seconds = f"{time.perf_counter() - start:.0f}"
    line: list[object] = [form, rows, pairs, quarantined, len(faults), sizes, seconds]
    return line, faults


# ---- strings

DIMENSIONS = ("category", "brand", "color", "label")
PIECES = (
    *("category: ", "brand:", "label: Exact", "label:", "label: Exact | ", " | ", "|", ":", ";", " ; ", "\\", "\\u00"),
    *("\\u006cabel", "\\n", "match", "mismatch", "absent", "-", "\n", "\r", "\u2028", "**", "```json\n", "```"),
    *("<think>", "</think>", "{", "}", "[", "]", '"', "'", ",", '"label"', '"verdicts"', ": ", "null", "true", "1e999"),
    *("//", "/*", "{" * 50, "[" * 50, "Exact", "exact", "E x a c t", "\x00", "\ud800"),
)


def rationale(rng: random.Random) -> Rationale:
    comparisons = [
        Comparison(
            name,
            tuple(text(rng, 2) for _ in range(rng.randint(0, 2))),
            tuple(text(rng, 2) for _ in range(rng.randint(0, 2))),
            rng.choice(VERDICTS),
        )
        for name in DIMENSIONS
    ]
    return Rationale(tuple(comparisons), rng.choice(LABELS.names))


def mutate(rng: random.Random, one: str) -> str:
    for _ in range(rng.randint(0, 4)):
        index, length = rng.randint(0, len(one)), rng.randint(0, 8)
        one = (
            one[:index]
            + (rng.choice(PIECES) if rng.random() < 0.6 else one[: rng.randint(0, 40)])
            + one[index + length :]
        )
    return one


def string(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.25:
        return "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 60)))
    if draw < 0.6:
        return mutate(rng, render(rationale(rng), rng.choice(("rationale_first", "label_first"))))
    answer = json.dumps(answer_form(rationale(rng), DIMENSIONS), ensure_ascii=rng.random() < 0.5)
    return mutate(rng, rng.choice(("", "Here it is: ", "<think>hm</think>", "```json\n")) + answer)


def read_strings(strings: int, seed: int) -> tuple[list[list[object]], list[str]]:
    """Generated strings through the three readers: a line of the report for each, and what is wrong."""
    rng, faults = seeded(seed, "strings"), []
    read: Counter[str] = Counter()
    memory, start, slowest = [resident()], time.perf_counter(), 0.0
    for number in range(strings):
        one, begin = string(rng), time.perf_counter()
        try:
            result = parse(one)
            read["parse"] += 1
            if one not in (
                render(result, "rationale_first"),
                render(result, "label_first"),
                render(result, "label_only"),
            ):
                faults.append(f"parse: another text is rendered for {one!r}"[:400])
        except ParseError:
            pass
        except Exception as error:
            faults.append(f"parse: {type(error).__name__}: {error} for {one!r}"[:400])
        for name, reader in (("parse_output", parse_output), ("read_answer", read_answer)):
            try:
                result = reader(one, dimensions=DIMENSIONS, labels=LABELS.names)
            except Exception as error:
                faults.append(f"{name}: {type(error).__name__}: {error} for {one!r}"[:400])
                continue
            if isinstance(result, ParseFailure | Failure):
                continue
            read[name] += 1
            if result.label not in LABELS.names or [each.dimension for each in result.comparisons] != list(DIMENSIONS):
                faults.append(f"{name}: a rationale of another form for {one!r}"[:400])
        slowest = max(slowest, time.perf_counter() - begin)
        if number % 10_000 == 9_999:
            memory.append(resident())
    grown = resident() - memory[min(1, len(memory) - 1)]
    if grown > GROWTH_MB:
        faults.append(f"strings: memory grew by {grown:.0f} MB")
    if slowest > 2:
        faults.append(f"strings: one took {slowest:.1f} s")
    sizes, seconds = f"{memory[0]:.0f} → {resident():.0f}", f"{time.perf_counter() - start:.0f}"
    lines: list[list[object]] = []
    for name in ("parse", "parse_output", "read_answer"):
        wrong = sum(fault.startswith(f"{name}:") for fault in faults)
        lines.append([name, strings, read[name], strings - read[name], wrong, sizes, seconds])
    return lines, faults


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="of each format; 2000")
    parser.add_argument("--strings", type=int, default=2000, help="2000")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    lines, faults = [], []
    for form in options.formats:
        line, wrong = read_rows(form, options.rows, options.seed)
        lines.append(line)
        faults += wrong
        print(f"{form}: {line[1]} rows, {len(wrong)} faults", file=sys.stderr, flush=True)
    more, wrong = read_strings(options.strings, options.seed)
    faults += wrong
    header = ["reader", "rows or strings", "pairs or rationales", "quarantined or refused", "faults", "MB", "s"]
    print(table(header, [*lines, *more]))
    shown: Counter[str] = Counter()
    for fault in faults:
        kind = fault.split()[0]
        shown[kind] += 1
        if shown[kind] <= 8:
            print(f"FAULT {fault!r}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""The examples of docs/signals.md are what they say: rows that are read, and Python that runs."""

import json
import re
from pathlib import Path

from jax_rele.data import read_external_signals
from jax_rele.types import Item, LabelSchema, Pair

GUIDE = (Path(__file__).parent.parent / "docs" / "signals.md").read_text("utf-8")
SCHEMA = LabelSchema(("Exact", "Substitute", "Complement", "Irrelevant"), (1.0, 0.1, 0.01, 0.0), ("Exact",))


def test_the_rows_are_read(tmp_path):
    rows = re.findall(r'^    (\{"pair_id".*\})$', GUIDE, re.MULTILINE)
    assert len(rows) == 3
    (tmp_path / "signals.jsonl").write_text("\n".join(rows))
    pairs = [Pair(json.loads(row)["pair_id"], "red shoes", Item("1", "crimson boots")) for row in rows]
    dimensions = ("category", "brand", "color")
    external = read_external_signals(
        tmp_path / "signals.jsonl", pairs, schema=SCHEMA, dimensions=dimensions, fields=("title",)
    )
    assert external.signals.label_probs.argmax(axis=1).tolist() == [0, 1, 3]
    assert len(external.signals.evidence[2]) == 4


def test_the_table_is_written_and_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)[-1]
    exec(compile(example, "docs/signals.md", "exec"), {})
    assert (tmp_path / "signals.parquet").is_file()

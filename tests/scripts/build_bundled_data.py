"""A folder of the form that `scripts/build_bundled/corpus.py` reads, made from the bundled sample."""

import json
from pathlib import Path

import jax_rele

SAMPLE = Path(jax_rele.__file__).parent / "data" / "sample" / "esci_tiny_us.jsonl"


def write_data(folder: Path, rows: int = 60) -> Path:
    """Judged pairs, of the sample's first and last rows and with queries that are not in it, and tagged queries."""
    sample = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()]
    judged = []
    for number, row in enumerate(sample[:rows]):
        judged.append({**row, "locale": "us", "source": "people"})
        product = {**row["product"], "id": f"other-{number}", "title": f"{row['product']['title']} bundle {number}"}
        other = {**row, "pair_id": f"other-{number}", "query": f"bundle of {row['query']}", "product": product}
        judged.append({**other, "locale": "us", "source": "people"})
    tagged = [row for row in sample if row.get("queryner")]
    judged += [{**row, "locale": "us", "source": "people"} for row in sample[-rows:]]
    queries = []
    for number, row in enumerate(tagged[:rows]):
        tags = row["queryner"]
        tokens, labels = ["gift", *tags["tokens"]], ["B-modifier", *tags["labels"]]
        split = "test" if number % 4 == 0 else "train"
        queries.append({"query": " ".join(tokens), "tokens": tokens, "labels": labels, "split": split})
    for name, table in {"esci/esci_pairs.jsonl": judged, "queryner/queryner.jsonl": queries}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in table), "utf-8")
    return folder

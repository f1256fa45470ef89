"""Compares the figures of two runs value by value: python scripts/compare_metrics.py OLD.json NEW.json

Exits with 1 where a value differs by more than --tolerance, or stands in one file alone.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every value in nested dicts and lists."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if items is None:
        yield path, values
        return
    for key, value in items:
        yield from leaves(value, f"{path}/{key}")


def differences(old: Any, new: Any, tolerance: float = 0.0) -> list[str]:
    """One line for each value that differs."""
    left, right = dict(leaves(old)), dict(leaves(new))
    lines = [f"{path}: in one file alone" for path in sorted(left.keys() ^ right.keys())]
    for path in sorted(left.keys() & right.keys()):
        a, b = left[path], right[path]
        if isinstance(a, float) and isinstance(b, float):
            if not math.isclose(a, b, rel_tol=0.0, abs_tol=tolerance):
                lines.append(f"{path}: {a!r} and {b!r}")
        elif a != b:
            lines.append(f"{path}: {a!r} and {b!r}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest absolute difference; 0 for identical")
    arguments = parser.parse_args()
    try:
        old, new = (json.loads(path.read_text("utf-8")) for path in (arguments.old, arguments.new))
    except (OSError, ValueError) as error:
        parser.error(f"not a file of JSON, such as runs/NAME/evaluate/metrics.json: {error}")
    lines = differences(old, new, arguments.tolerance)
    print("\n".join(lines) if lines else f"{sum(1 for _ in leaves(old))} values, all equal")
    return bool(lines)


if __name__ == "__main__":
    raise SystemExit(main())

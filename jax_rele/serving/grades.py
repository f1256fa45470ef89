"""A file of grades that people gave: pairs in the documented format, with the judge beside.

The file holds one row for each judge, query and item: the last grade. `jax-rele run --data.path FILE` reads it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from jax_rele.data.rows import stable_id
from jax_rele.errors import UserError
from jax_rele.io import lock, write_error, write_text
from jax_rele.serving.refusals import BadRequest


class GradeFile:
    """A file of grades, held for one process.

    Args:
      path: JSON lines; it is created with the first grade.
      labels: names of the grades.

    Raises:
      UserError: the file cannot be read or written, holds something else, or another process holds it.
    """

    def __init__(self, path: str | Path, labels: Sequence[str]):
        self.path, self.labels = Path(path), tuple(labels)
        self._rows: dict[str, dict] = {}
        self._mutex = threading.Lock()
        self._lock = ExitStack()
        if not self.path.resolve().parent.is_dir():
            raise UserError(f"{self.path.resolve().parent}: no such folder for judgements; create it first")
        busy = UserError(f"{path}: another service writes judgements there; give another --judgements")
        try:
            self._lock.enter_context(lock(self.path.with_name(f".{self.path.name}.lock"), lambda: busy))
            if self.path.exists():
                self._read()
        except OSError as error:
            raise write_error(path, error) from None
        except Exception:
            self.close()
            raise

    def _read(self) -> None:
        try:
            text = self.path.read_text("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: is not UTF-8 text; give another --judgements") from None
        for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
            try:
                row = json.loads(line)
                key, _ = row["pair_id"], (row["query"], row["item"]["title"])
                is_known = row["label"] in self.labels
            except (ValueError, KeyError, TypeError, RecursionError):
                key, is_known = "", True
            if not isinstance(key, str) or not key:
                raise UserError(f"{self.path}, row {number}: no judgement of this service; give another --judgements")
            if not is_known:
                raise UserError(
                    f"{self.path}, row {number}: a label that is none of {', '.join(self.labels)}; give another "
                    "--judgements"
                )
            self._rows[key] = row

    def add(self, judge: str, query: str, item: dict, label: str | None) -> dict:
        """Keeps a grade; None takes an earlier one back. Returns the row.

        Raises:
          BadRequest: there is no such grade.
          UserError: the file cannot be written; then nothing has changed.
        """
        if label is not None and label not in self.labels:
            raise BadRequest(f"label: must be one of {', '.join(self.labels)}, or null")
        key = stable_id("pair", query, item["id"], judge)
        row = {"pair_id": key, "query": query, "item": item, "label": label, "judge": judge}
        with self._mutex:
            rows = {**self._rows}
            rows.pop(key, None)
            if label is not None:
                rows[key] = row
            # Whole and at once: a file that is cut in a row would be no input for a run.
            write_text(self.path, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows.values()))
            self._rows = rows
        return row

    def rows(self, judge: str | None = None) -> list[dict]:
        """The grades of a judge, or of all, in the order in which they were given."""
        with self._mutex:
            return [row for row in self._rows.values() if judge is None or row["judge"] == judge]

    def close(self) -> None:
        """Lets other processes write to the file."""
        self._lock.close()

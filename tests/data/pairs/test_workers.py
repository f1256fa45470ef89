"""Several processes parse rows: the tables are those of one, and no process outlives its work."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jax_rele.config import DataConfig, LabelsConfig
from jax_rele.data import ingest
from jax_rele.data.pairs import reading
from jax_rele.data.pairs.facts import Parsing
from jax_rele.data.pairs.workers import start_workers
from jax_rele.errors import UserError
from jax_rele.types import ReadOptions

LABELS = LabelsConfig()
PARSING = Parsing(ReadOptions(), {}, LABELS.names, True, 0)


def rows_of(code):
    """A chunk whose rows are the value of an expression."""
    return partial(eval, code)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder of files of several chunks, with bad rows and duplicates."""
    monkeypatch.setattr(reading, "_ROWS_WITHOUT_WORKERS", 1000)
    folder = tmp_path / "source"
    folder.mkdir()
    rows = [
        {"pair_id": f"p{i}", "query": f"q {i % 400}", "title": f"shoe {i % 700}", "label": LABELS.names[i % 3]}
        for i in range(3000)
    ]
    rows[700]["title"] = rows[2900]["query"] = ""
    rows[1500]["pair_id"] = "p3"
    (folder / "a.jsonl").write_text("".join(json.dumps({**row, "more": "x" * 600}) + "\n" for row in rows), "utf-8")
    lines = [",".join(str(value) for value in row.values()) for row in rows]
    (folder / "b.csv").write_text("\n".join([",".join(rows[0]), *lines]).replace("p", "c"), "utf-8")
    pq.write_table(
        pa.Table.from_pylist([{**row, "pair_id": f"d{i}"} for i, row in enumerate(rows)]), folder / "c.parquet"
    )
    return folder


def test_the_tables_are_the_same_for_any_number_of_processes(source, tmp_path):
    data = DataConfig(path=str(source), max_bad_fraction=1.0)
    contents = []
    for processes in (1, 2, 3):
        folder = tmp_path / f"{processes}"
        folder.mkdir()
        result = ingest(data, LABELS, 0, tmp_path, folder, processes)
        contents.append([result.counts, *(path.read_bytes() for path in sorted(folder.iterdir()))])
    assert contents[0] == contents[1] == contents[2]
    assert contents[0][0]["rows"]["read"] == 9000


def test_the_first_error_is_that_of_one_process(source, tmp_path):
    (source / "b.csv").write_text("query,other\n" + "q,x\n" * 3000, "utf-8")
    (source / "c.parquet").write_bytes(b"PAR1 damaged")
    messages = set()
    for processes in (1, 2):
        with pytest.raises(UserError) as error:
            ingest(DataConfig(path=str(source)), LABELS, 0, tmp_path, tmp_path, processes)
        messages.add(str(error.value))
    (message,) = messages
    assert "no column holds the title" in message


def test_processes_end_with_their_work_and_import_no_jax():
    code = "[(1, {'query': str('jax' in __import__('sys').modules), 'title': print('noise') or 't'}, b'')]"
    with start_workers(2) as workers:
        parsed = workers.submit(rows_of(code), PARSING).result()
        assert parsed.pairs["query"].to_pylist() == ["False"]
        processes = workers.processes
    assert all(process.poll() is not None for process in processes)


def test_errors_come_back_and_the_process_goes_on():
    with start_workers(1) as workers:
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            workers.submit(rows_of("1 / 0"), PARSING).result()
        assert workers.submit(rows_of("[]"), PARSING).result().pairs.num_rows == 0


def test_a_killed_process_is_named_in_one_line():
    with start_workers(1) as workers:
        os.kill(workers.processes[0].pid, signal.SIGKILL)
        with pytest.raises(UserError, match="SIGKILL") as error:
            workers.submit(rows_of("[]"), PARSING).result()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_the_one_that_started_them(number):
    code = (
        "import signal, time\nfrom jax_rele.data.pairs.workers import start_workers\n"
        # A shell without job control has what it starts in the background ignore Ctrl-C.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with start_workers(1) as workers:\n    print(workers.processes[0].pid, flush=True)\n    time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        worker = int(parent.stdout.readline())
        parent.send_signal(number)
        parent.wait(60)
        for _ in range(600):
            try:
                with open(f"/proc/{worker}/stat", encoding="ascii") as status:
                    if status.read().rpartition(")")[2].split()[0] == "Z":
                        break
            except (FileNotFoundError, ProcessLookupError):
                break
            time.sleep(0.1)
        else:
            pytest.fail("the process goes on")

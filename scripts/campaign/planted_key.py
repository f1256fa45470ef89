"""A planted API key, searched for in everything that a run, the answer store, the logs and the service write.

    python scripts/campaign/planted_key.py [--work DIR] [--seed 0]

The key of an annotation endpoint is set in the environment; a chat server refuses every call that does not bring it
and quotes what it was brought, as some do. A tiny run is prepared and annotated with a wrong key and with the right
one, its prompts are shown, a student is trained and exported, and a service that asks for a key answers good and bad
requests. Then every file below the working folder is searched for either key, as it is, in base64, in hexadecimal and
reversed; Parquet, gzip and zstd are unpacked. Exits with 1 if a key is anywhere, or a command ends otherwise.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from chat_server import answering, well
from common import seeded, table, tail, tiny_config

VARIABLE = "CAMPAIGN_KEY"
SERVICE = "JAX_RELE_API_KEY"


def forms(key: str) -> dict[str, bytes]:
    raw = key.encode()
    return {
        "as it is": raw,
        "base64": base64.b64encode(raw).rstrip(b"="),
        "hexadecimal": raw.hex().encode(),
        "reversed": raw[::-1],
    }


def contents(path: Path) -> Iterator[bytes]:
    """What a file holds, as it lies and unpacked."""
    raw = path.read_bytes()
    yield raw
    if raw[:4] == b"PAR1":
        file = pq.ParquetFile(io.BytesIO(raw))
        yield repr(file.metadata.metadata).encode()
        for batch in file.iter_batches():
            yield repr(batch.to_pylist()).encode()
    elif raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)
    elif raw[:4] == b"\x28\xb5\x2f\xfd":
        with suppress(OSError):  # a frame among others, as in checkpoints
            yield pa.CompressedInputStream(pa.BufferReader(raw), "zstd").read()


def leaks(folder: Path, keys: Sequence[str]) -> tuple[int, list[str]]:
    """How many files there are, and where a key is: one line each."""
    files, lines = 0, []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        files += 1
        for content in contents(path):
            for key in keys:
                lines += [f"{path.relative_to(folder)}: {form}" for form, text in forms(key).items() if text in content]
        lines += [f"{path.relative_to(folder)}: in its name" for key in keys if key in path.name]
    return files, lines


def jax_rele(log: Path, arguments: Sequence[object], **variables: str) -> int:
    with log.open("a") as output:
        command = [sys.executable, "-m", "jax_rele.cli", *map(str, arguments)]
        return subprocess.run(
            command, env={**os.environ, **variables}, stdout=output, stderr=output, check=False
        ).returncode


def ask(url: str, key: str, body: bytes) -> int:
    request = urllib.request.Request(url, body, {"content-type": "application/json", "authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def serve(log: Path, bundle: Path, key: str, wrong: str) -> list[tuple[str, int, int]]:
    """Requests to a service: what was asked, the status, and the one that is right."""
    with log.open("a") as output:
        command = [sys.executable, "-m", "jax_rele.cli", "serve", str(bundle), "--port", "0", "--log-texts"]
        process = subprocess.Popen(command, env={**os.environ, SERVICE: key}, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 240
        while not (address := re.findall(r"at (http://[\d.:]+)", log.read_text("utf-8", "replace"))):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the service did not start: {tail(log, 3)}")
            time.sleep(0.3)
        url = f"{address[-1]}/rerank"
        good = b'{"query": "red shoe", "texts": ["red shoe", "blue hat"]}'
        cases = [("the right key", key, good, 200), ("a wrong key", wrong, good, 401), ("a bad body", key, b"{", 400)]
        return [(name, ask(url, bearer, body), status) for name, bearer, body, status in cases]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder to work in, which is searched; by default a temporary one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng = seeded(options.seed, "keys")
    key, wrong = (f"sk-planted-{rng.getrandbits(128):032x}" for _ in range(2))
    with tempfile.TemporaryDirectory() as temporary, answering(well, key) as url:
        folder = (options.work or Path(temporary)).resolve()
        endpoint = {"name": "one", "model": "one", "base_url": url, "key_variable": VARIABLE}
        chat = {"annotator": "llm", "endpoints": [endpoint], "gold_filter": "keep", "min_vote_fraction": 0.0}
        distill = {"students": ["cross_encoder"], "optimization": {"steps": 4, "batch_size": 16}}
        config = tiny_config(folder, steps=4, rows=60, annotate=chat, distill=distill)
        log, bundle = folder / "log.txt", folder / "bundle"
        root, right = folder / "runs" / "tiny", {VARIABLE: key}
        commands: list[tuple[list[object], dict[str, str], int]] = [
            (["prepare", config], {}, 0),
            (["annotate", config], {VARIABLE: wrong}, 2),
            (["annotate", config], right, 0),
            (["annotate", "show-prompt", config], right, 0),
            (["run", config], right, 0),
            (["export", root, "--model", "cross_encoder", "--output", bundle], right, 0),
        ]
        wrongs = []
        for words, variables, expected in commands:
            status = jax_rele(log, words, **variables)
            if status != expected:
                wrongs.append(f"{words[0]}: status {status}, not {expected}: {tail(log, 2)}")
                break
        else:
            answers = serve(log, bundle, key, wrong)
            wrongs += [f"service, {name}: {status}, not {due}" for name, status, due in answers if status != due]
        files, lines = leaks(folder, (key, wrong))
        # The search itself is tried: a key that is planted in a file is one that is there.
        (folder / "planted.txt").write_text(key)
        searches = leaks(folder, (key,))[1] != lines
        header = ["files searched", "keys", "leaks", "commands that ended otherwise"]
        print(table(header, [[files, 2, len(lines), len(wrongs)]]))
        for line in [*lines, *wrongs]:
            print(f"FAULT {line}")
        return 1 if lines or wrongs or not searches else 0


if __name__ == "__main__":
    sys.exit(main())

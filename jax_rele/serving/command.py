"""`jax-rele serve`: bundles from folders, then a server until it is told to end."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

import numpy as np

from jax_rele import extras
from jax_rele.deployment.index.items import ReadItems, read_items
from jax_rele.deployment.scorer import Scorer, load_bundle
from jax_rele.errors import UserError
from jax_rele.serving.catalogue import Bm25, ExactSearch, Search, open_search, read_queries
from jax_rele.types import Item, ReadOptions

KEY = "JAX_RELE_API_KEY"
DAY = 86_400
BACKLOG = 2048
"""Connections that wait to be accepted; uvicorn's own number."""


def serve(
    bundles: Sequence[Path],
    *,
    items: str | None = None,
    index: Path | None = None,
    reading: ReadOptions = ReadOptions(),
    queries: Path | None = None,
    grades: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    threads: int = 0,
    max_batch_tokens: int = 8192,
    max_queue_rows: int = 4096,
    max_rows: int = 1000,
    max_body_bytes: int = 4_000_000,
    timeout: float = 30,
    log_texts: bool = False,
) -> None:
    """Serves until SIGTERM or SIGINT; then finishes what was taken and returns.

    Args:
      bundles: folders of one or two bundles of different kinds.
      items: file of items to search; without index each is embedded at the start.
      index: folder of an index of the two-tower's embeddings.
      reading: how the file of items is read.
      queries: file of sample queries; by default those beside the items.
      grades: file where they are kept.
      host, port: where to listen; port 0 is any that is free.
      threads: of ONNX Runtime; 0 is one for each core.
      max_batch_tokens, max_queue_rows, max_rows, max_body_bytes, timeout: see `jax_rele.serving.service.Limits`.
      log_texts: whether the log holds the texts of requests.

    Raises:
      UserError: a package, a bundle or a file is missing or damaged; two bundles of a kind; the port is taken.
    """
    extras.require("deploy", "services", "onnxruntime", "fastapi", "uvicorn", "prometheus_client")
    from jax_rele.serving.app import create_app
    from jax_rele.serving.grades import GradeFile
    from jax_rele.serving.service import Limits, Service

    if max_queue_rows < max_rows:
        raise UserError(f"--max-queue-rows: {max_queue_rows} is less than --max-rows {max_rows}; give more")
    if timeout > DAY:
        raise UserError(f"--timeout: {timeout:g} seconds are more than a day, {DAY}; give less")
    if index is not None and items is not None:
        raise UserError("--index: holds its items itself; leave --items out")
    if reading != ReadOptions(from_command=reading.from_command) and items is None:
        raise UserError("--fields, --encoding, --delimiter, --quoting, --html and --max-characters go with --items")
    key = _api_key()
    samples: Sequence[str] | None = read_queries(queries) if queries is not None else None
    with _listening(host, port) as listener, ExitStack() as opened:
        scorers = load_bundles(bundles, threads=threads, batch_tokens=max_batch_tokens)
        by_kind = {scorer.manifest.model: scorer for scorer in scorers}
        store: GradeFile | None = None
        if grades is not None:
            store = GradeFile(grades, scorers[0].schema.names)
            opened.callback(store.close)
        search: Search | None = None
        words: Bm25 | None = None
        if items is not None:
            catalogue = _read_items(items, reading, scorers)
            samples = catalogue.queries if samples is None else samples
            words = Bm25(catalogue.items, scorers[0].manifest.fields)
            if "two_tower" in by_kind:
                search = exact_search(by_kind["two_tower"], catalogue.items)
        if index is not None:
            if "two_tower" not in by_kind:
                raise UserError(f"--index: {index} needs the two-tower's bundle that built it; give that too")
            folder = bundles[scorers.index(by_kind["two_tower"])]
            indexed = open_search(index, by_kind["two_tower"].manifest, folder)
            search, words = indexed, Bm25(indexed.items(), scorers[0].manifest.fields)
        limits = Limits(max_batch_tokens, max_queue_rows, max_rows, max_body_bytes, timeout)
        service = Service(scorers, limits, search=search, bm25=words, queries=samples or (), grades=store)
        opened.callback(service.close)
        app = create_app(service, api_key=key, log_texts=log_texts)
        # Before the address is printed: whoever reads it may connect at once.
        listener.listen(BACKLOG)
        address, number = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        print(f"serving {', '.join(by_kind)} at http://{shown}:{number}", file=sys.stderr, flush=True)
        _allow_open_files()
        run_server(app, service, listener)


def _api_key() -> str:
    """What requests must bear; empty for nothing. Raises UserError for a key that no request can bear."""
    key = os.environ.get(KEY)
    if key is None:
        return ""
    # A secret that was not filled in must not open the service.
    if not key.strip() or not (key.strip().isascii() and key.strip().isprintable()):
        raise UserError(f"{KEY}: is set, but holds no printable ASCII text; set it to a key, or unset it for none")
    return key.strip()


def _allow_open_files() -> None:
    """Raises the limit of open files as far as the system lets a process: each connection is one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def load_bundles(folders: Sequence[Path], *, threads: int, batch_tokens: int) -> list[Scorer]:
    """The students of one or two bundles.

    Raises:
      UserError: more than two, two of one kind, or with different labels; a folder is no bundle.
    """
    if len(folders) > 2:
        raise UserError(f"{len(folders)} bundles are too many; give a cross-encoder, a two-tower, or both")
    scorers = [load_bundle(folder, threads=threads, batch_tokens=batch_tokens) for folder in folders]
    if len(scorers) == 2:
        first, second = (scorer.manifest for scorer in scorers)
        if first.model == second.model:
            raise UserError(f"{folders[0]} and {folders[1]}: both hold a {first.model}; give one of each kind")
        if first.labels != second.labels:
            raise UserError(f"{folders[0]} and {folders[1]}: have different labels; give bundles of one run")
    return scorers


def _read_items(path: str, reading: ReadOptions, scorers: Sequence[Scorer]) -> ReadItems:
    """The items of a file that every student can read; what is wrong with the others is said."""
    read = read_items(path, reading)
    for scorer in scorers:
        read = read.without(scorer.unreadable(read.items), path)
    if read.bad:
        print(f"{path}: {len(read.bad)} bad rows left out, the first is {read.bad[0].named(path)}", file=sys.stderr)
    if read.n_replaced:
        line = f"{path}: {read.n_replaced} rows repeat an id with other content; the last row of an id counts"
        print(line, file=sys.stderr)
    return read


def exact_search(scorer: Scorer, items: Sequence[Item]) -> ExactSearch:
    """Embeds items. Raises UserError for a two-tower that has no single embedding of an item."""
    if scorer.manifest.head == "maxsim":
        raise UserError("--items: the two-tower has one embedding per token (head maxsim); it cannot be searched")
    print(f"embedding {len(items)} items", file=sys.stderr, flush=True)
    return ExactSearch(items, np.asarray(scorer.embed(items, "item"), np.float32))


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket, so that a port that is taken is found before anything is loaded."""
    # The resolver would take the rest of a larger number as another port.
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port}: must be from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {getattr(error, 'strerror', None) or error}") from None
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"--port {port}: cannot listen at {host}: {reason}; give another port") from None
        yield listener


def run_server(app, service, listener: socket.socket) -> None:
    """Runs until SIGTERM or SIGINT; then refuses new requests and finishes those that it has."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            # Not uvicorn's own, which ends the process by the signal after all is done well.
            before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGTERM, signal.SIGINT)}
            try:
                yield
            finally:
                for each, handler in before.items():
                    signal.signal(each, handler)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            service.draining = True
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(service.limits.seconds) + 5,
    )
    Server(config).run([listener])

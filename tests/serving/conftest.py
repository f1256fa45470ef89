"""A service on tiny bundles with items to search, and a client of it in this process."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient

from jax_rele.deployment.index import read_items
from jax_rele.deployment.scorer import load_bundle
from jax_rele.serving.app import create_app
from jax_rele.serving.catalogue import Bm25
from jax_rele.serving.command import exact_search
from jax_rele.serving.grades import GradeFile
from jax_rele.serving.service import Limits, Service

sys.path.insert(0, str(Path(__file__).parent))  # for `asking`

_spec = importlib.util.spec_from_file_location(
    "deployment_conftest", Path(__file__).parent.parent / "deployment" / "conftest.py"
)
_bundles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_bundles)
write_bundle, cross_bundle, tower_bundle = _bundles.write_bundle, _bundles.cross_bundle, _bundles.tower_bundle
word_bundles = _bundles.word_bundles

COLORS, THINGS = ("red", "blue", "green"), ("running shoes", "cotton shirt", "garden hose", "iphone charger")
ITEMS = [
    {
        "id": f"{color}-{number}",
        "title": f"{color} {thing} {number}",
        "brand": "Acme" if number % 2 else "Zed",
        "color": color,
    }
    for color in COLORS
    for number, thing in enumerate(THINGS)
]


@pytest.fixture(scope="session")
def items_file(tmp_path_factory):
    """A file of pairs: twelve items, a query beside every third."""
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    rows = [{"query": f"{item['title']} cheap", "item": item} if n % 3 == 0 else item for n, item in enumerate(ITEMS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def scorers(cross_bundle, tower_bundle):
    """The students of both bundles, by kind."""
    loaded = [load_bundle(folder, threads=1) for folder in (cross_bundle, tower_bundle)]
    return {scorer.manifest.model: scorer for scorer in loaded}


@pytest.fixture
def serving(scorers, items_file, tmp_path):
    """Makes (client, service); keyword arguments are of `Limits` and `create_app`."""
    opened = []

    def start(kinds=("cross_encoder", "two_tower"), *, items=True, api_key="", log_texts=False, bundles=None, **limits):
        chosen = [(bundles or scorers)[kind] for kind in kinds]
        options = {}
        if items:
            read = read_items(items_file)
            catalogue = read.items
            options = {"bm25": Bm25(catalogue, chosen[0].manifest.fields), "queries": read.queries}
            if "two_tower" in kinds:
                options["search"] = exact_search((bundles or scorers)["two_tower"], catalogue)
        store = GradeFile(tmp_path / f"judgements-{len(opened)}.jsonl", chosen[0].schema.names)
        service = Service(chosen, Limits(**limits), grades=store, **options)
        client = TestClient(create_app(service, api_key=api_key, log_texts=log_texts), raise_server_exceptions=False)
        opened.extend([store, service, client.__enter__()])
        return client, service

    yield start
    for store, service, client in zip(opened[::3], opened[1::3], opened[2::3]):
        client.__exit__(None, None, None)
        service.close()
        store.close()


class Process:
    """A running `jax-rele serve`."""

    def __init__(self, *arguments, **environment):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jax_rele.cli", "serve", *map(str, arguments), "--port", str(self.port)],
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            text=True,
        )
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self.reader.start()
        for _ in range(600):
            assert self.process.poll() is None, "".join(self.lines)
            try:
                if httpx2.get(f"{self.url}/ready").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError("not ready after a minute")

    def end(self, sig=signal.SIGTERM):
        """The exit status."""
        self.process.send_signal(sig)
        status = self.process.wait(60)
        self.reader.join(10)
        return status


@pytest.fixture
def serve_process():
    """Starts `jax-rele serve` in processes, which end with the test."""
    started = []

    def start(*arguments, **environment):
        started.append(Process(*arguments, **environment))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


@pytest.fixture(name="write_bundle", scope="session")
def write_bundle_fixture():
    """Writes a tiny bundle into a new folder."""
    return write_bundle


@pytest.fixture
def both(serving):
    """A client of a service of both students."""
    return serving()[0]

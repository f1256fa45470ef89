"""The misbehaving server, for the tests of this folder and whoever needs one."""

import json
import sys
from pathlib import Path

import pytest

import jax_rele
from jax_rele.annotation import runner

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def short_pauses():
    """Pauses are short."""
    patch = pytest.MonkeyPatch()
    patch.setattr(runner, "BACKOFF", 0.004)
    patch.setattr(runner, "BREAKER_WAIT", 0.02)
    patch.setattr(runner, "ELSEWHERE_SECONDS", 0.02)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def bare_package() -> str:
    """Code for the head of a worker's program: imports no other packages of jax_rele, which take seconds."""
    return f"""
import sys, types
sys.modules["jax_rele"] = types.ModuleType("jax_rele")
sys.modules["jax_rele"].__path__ = {list(jax_rele.__path__)!r}
"""


@pytest.fixture
def reply(monkeypatch):
    """Sets what every call to /chat/completions gets: a status and a body."""
    import server as servers

    def set_reply(body, status=200, refused=lambda request: True):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        usual = servers.Server.handle

        def handle(server, line, headers, content):
            if line.startswith("POST") and refused(json.loads(content)):
                server.calls += 1
                return 0.0, servers._whole(status, body), False
            return usual(server, line, headers, content)

        monkeypatch.setattr(servers.Server, "handle", handle)

    return set_reply

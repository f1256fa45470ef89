"""Tiny bundles, made once for all tests of a worker."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_bundles import tiny_items, write_cross, write_tower


@pytest.fixture(scope="session")
def tower(tmp_path_factory):
    return write_tower(tmp_path_factory.mktemp("bundles") / "tower")


@pytest.fixture(scope="session")
def mlp_tower(tmp_path_factory):
    return write_tower(tmp_path_factory.mktemp("bundles") / "mlp", head="mlp")


@pytest.fixture(scope="session")
def cross(tmp_path_factory):
    return write_cross(tmp_path_factory.mktemp("bundles") / "cross")


@pytest.fixture(scope="session")
def items():
    return tiny_items(90)

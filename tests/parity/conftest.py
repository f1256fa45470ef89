"""Parity with torch, transformers and peft; collected where torch is installed, as `.ci/run` does."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]

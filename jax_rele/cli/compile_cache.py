"""A folder for jax's cache of compiled programs that cannot be used is said in one line, not once a program."""

from __future__ import annotations

import os
import sys
import tempfile

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def check_compile_cache() -> None:
    """Prints one line and goes on without the cache where the folder that the user set cannot be written.

    Reads the environment alone, so that commands that need no jax do not import it.
    """
    folder = os.environ.get(VARIABLE, "")
    if not folder or "://" in folder:  # a bucket is jax's to open
        return
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        print(
            f"warning: {VARIABLE}: {folder} cannot be written ({error.strerror}); programs are compiled anew, "
            "and none is stored; name a folder that can be written, or unset it",
            file=sys.stderr,
        )
        del os.environ[VARIABLE]
        if "jax" in sys.modules:  # it has read the variable already
            sys.modules["jax"].config.update("jax_compilation_cache_dir", None)

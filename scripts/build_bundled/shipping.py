"""Writes the folder of a bundled base: weights in float16, tokenizer, model card, licence, notice, checksums."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jax_rele.io import atomic_folder
from jax_rele.models import Decoder, Encoder, to_hf
from jax_rele.models.bundled import write_checksums

HERE = Path(__file__).parent


def ship(model: Decoder | Encoder, variables: Mapping[str, Any], tokenizer: Path, output: Path, name: str) -> None:
    """Writes a folder that appears whole or not at all.

    Args:
      model, variables: the trained model, in any precision.
      tokenizer: its folder.
      output: the folder to write; it must not exist.
      name: of the base, whose card is `cards/NAME.md`.
    """
    half = jax.tree.map(lambda x: x.astype(jnp.float16), dict(variables))
    config = dataclasses.replace(model.config, param_dtype=jnp.dtype("float16"))
    with atomic_folder(output) as folder:
        to_hf(model.clone(config=config), half, folder, source=tokenizer)
        shutil.copyfile(HERE / "cards" / f"{name}.md", folder / "README.md")
        shutil.copyfile(HERE / "cards" / "NOTICE", folder / "NOTICE")
        shutil.copyfile(HERE.parents[1] / "LICENSE", folder / "LICENSE")
        write_checksums(folder)

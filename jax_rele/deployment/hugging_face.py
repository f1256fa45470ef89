"""Folders that transformers' AutoModel loads, and what the other formats take from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from transformers import AutoTokenizer

from jax_rele.deployment import export
from jax_rele.deployment.student_data import StudentData
from jax_rele.io import write_json
from jax_rele.models import Encoder, from_hf, to_hf
from jax_rele.students.two_tower import TwoTower
from jax_rele.text import clean_text
from jax_rele.types import Pair, Params

BATCH = 64


def write(data: StudentData, folder: Path, pairs: list[Pair]) -> export.Written:
    """A two-tower that is its encoder alone: the embedding is the mean, or the first, of the token vectors."""
    model = data.student.model
    assert isinstance(model, TwoTower)
    write_encoder(data, folder, data.params["encoder"], max(data.manifest.query_length, data.manifest.item_length + 1))
    outputs = {}
    for side, length in (("query", data.manifest.query_length), ("item", data.manifest.item_length + 1)):
        vectors = pool(token_vectors(folder, side_texts(data, pairs, side), length), model.pooling)
        outputs[f"{side}_embedding"] = normalised(vectors) if model.normalize else vectors
    inner = (outputs["query_embedding"] * outputs["item_embedding"]).sum(axis=-1)
    pooled = "hidden.mean over the tokens" if model.pooling == "mean" else "hidden[:, 0]"
    usage = (
        "from transformers import AutoModel, AutoTokenizer",
        "",
        'tokenizer, encoder = AutoTokenizer.from_pretrained("THIS_FOLDER"), AutoModel.from_pretrained("THIS_FOLDER")',
        f"# embedding: {pooled}{', divided by its length' if model.normalize else ''}",
    )
    return export.Written({**outputs, "inner_product": inner}, "inner_product", usage)


def write_encoder(
    data: StudentData, folder: Path, params: Params, length: int, *, types_of_side: int | None = None
) -> None:
    """An encoder with its tokenizer.

    Args:
      data: the student.
      folder: to fill; it is empty or missing.
      params: the encoder's parameters.
      length: most tokens of a row, for the tokenizer's config.
      types_of_side: the token type that all rows have; its vector becomes that of type 0, which callers use.
    """
    config = data.student.model.encoder
    if types_of_side is not None and config.token_types > 1:
        table = np.array(params["token_type_embedding"])
        table[0] = table[min(types_of_side, config.token_types - 1)]
        params = {**params, "token_type_embedding": table}
    to_hf(Encoder(config), {"params": jax.tree.map(jnp.asarray, params)}, folder)
    export.write_tokenizer(data, folder)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text("utf-8")) | {"model_max_length": length}
    if config.token_types > 1:
        # A tokenizer of no family of its own returns types only where it is told to.
        values["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    write_json(path, values)
    raw = json.loads((folder / "config.json").read_text("utf-8"))
    tokenizer = data.student.tokenizer
    raw |= {key: getattr(tokenizer, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if config.position_offset:
        raw["pad_token_id"] = config.position_offset - 1
    write_json(folder / "config.json", raw)


def write_pooling(folder: Path, width: int, mode: str) -> None:
    """`1_Pooling/config.json` with the keys of every reader: each ignores, or refuses to be without, the other's."""
    (folder / "1_Pooling").mkdir()
    old = {
        "pooling_mode_cls_token": mode == "cls",
        "pooling_mode_mean_tokens": mode == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": False,
    }
    values = {"embedding_dimension": width, "word_embedding_dimension": width, "pooling_mode": mode, **old}
    write_json(folder / "1_Pooling" / "config.json", {**values, "include_prompt": True})


def side_texts(data: StudentData, pairs: Sequence[Pair], side: str) -> list[str]:
    """The texts of one side, cleaned as ours are (`text.clean_text`), as another program has to give them."""
    if side == "query":
        return [clean_text(pair.query) for pair in pairs]
    return [" ".join(clean_text(text) for _, text in pair.item.texts(data.manifest.fields)) for pair in pairs]


def token_vectors(
    folder: Path, texts: Sequence[str], length: int, second: Sequence[str] | None = None
) -> list[np.ndarray]:
    """Token vectors of texts, or pairs of texts, read from a written folder as other programs read it.

    The tokenizer is transformers' own, with its own truncation; the weights are those of the files.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model, variables = from_hf(folder, dtype=jnp.float32)
    run = jax.jit(lambda variables, *rows: model.apply(variables, *rows))
    vectors: list[np.ndarray] = []
    for start in range(0, len(texts), BATCH):
        part = [list(texts[start : start + BATCH])] + (
            [list(second[start : start + BATCH])] if second is not None else []
        )
        rows = tokenizer(*part, truncation=True, max_length=length, padding="max_length", return_tensors="np")
        tokens, mask = rows["input_ids"], rows["attention_mask"] == 1
        types = rows.get("token_type_ids", np.zeros_like(tokens))
        hidden = np.asarray(run(variables, jnp.asarray(tokens), jnp.asarray(types), jnp.asarray(mask)))
        vectors += [row[valid] for row, valid in zip(hidden, mask)]
    return vectors


def pool(vectors: Sequence[np.ndarray], pooling: str) -> np.ndarray:
    """[N, W], the mean or the first of each row's token vectors."""
    return np.stack([row[0] if pooling == "first" else row.mean(axis=0) for row in vectors])


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)

"""The shapes that are timed, the texts of both sides, and the operations and bytes that they need at least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shape:
    """A decoder of the Qwen3 architecture, and the sizes of its work.

    Attributes:
      layers, width, heads, kv_heads, head_dim, mlp_width, vocab_size, tied: the decoder.
      dtype: of weights and activations; adapters are float32.
      matmul, stream: for the machine's measured rates: (rows and columns of a product's matrices, products), and
        (float32 numbers of an array, times that it is scaled), timed together.
      rank, rows, row_length, texts: the SFT step: rank of the adapters on all seven projections, packed rows of a
        batch, tokens of a row, and the (fewest, most) tokens of a text; its last third is the completion.
      remats: (ours, theirs) for each SFT case: what the backward pass recomputes, "none", "dots" (all but the results
        of matrix products; ours alone has it) or "full" (whole layers).
      prefix_length, item_lengths, pairs: scoring: tokens of instructions and query, the (fewest, most) tokens of an
        item, and pairs of a timed run.
      items: items a query for each case with a shared prefix.
      score_batch: prompts of a forward pass.
      decode_batch: decoding: rows at a time.
      plain: (tokens of a prompt, tokens written) in plain decoding.
      guided: (tokens of a prompt, most tokens of a value) in rationales.
      repeats: times that each case is timed.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocab_size: int
    tied: bool
    dtype: str
    matmul: tuple[int, int]
    stream: tuple[int, int]
    rank: int
    rows: int
    row_length: int
    texts: tuple[int, int]
    remats: tuple[tuple[str, str], ...]
    prefix_length: int
    item_lengths: tuple[int, int]
    pairs: int
    items: tuple[int, ...]
    score_batch: int
    decode_batch: int
    plain: tuple[int, int]
    guided: tuple[int, int]
    repeats: int

    # ---- operations, after Chowdhery et al., PaLM, arXiv 2204.02311, appendix B: without recomputation; a
    # multiplication and an addition are two.

    @property
    def projections(self) -> int:
        """Weights of all layers' linear maps."""
        heads = self.heads + 2 * self.kv_heads
        return self.layers * (
            self.width * heads * self.head_dim
            + self.heads * self.head_dim * self.width
            + 3 * self.width * self.mlp_width
        )

    @property
    def adapters(self) -> int:
        """Weights of the adapters on all projections."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        ends = 2 * (self.width + query) + 2 * (self.width + key) + 3 * (self.width + self.mlp_width)
        return self.layers * self.rank * ends

    def attention_flops(self, seen: int) -> int:
        """Forward; `seen` counts the (query, key) pairs of a batch that causality and segments allow."""
        return 4 * self.layers * self.heads * self.head_dim * seen

    def forward_flops(self, tokens: int, seen: int) -> int:
        """Of the layers alone, without adapters and output embedding."""
        return 2 * self.projections * tokens + self.attention_flops(seen)

    def sft_flops(self, tokens: int, seen: int, targets: int) -> int:
        """Of a LoRA step: the frozen weights take part forward and in the gradient of activations (2 + 2 operations a
        weight and token), adapters also in their own gradient (2 + 4), attention three times its forward pass, the
        output embedding forward and backward at the positions that have a target."""
        frozen = 4 * (self.projections * tokens + self.vocab_size * self.width * targets)
        return frozen + 6 * self.adapters * tokens + 3 * self.attention_flops(seen)

    @property
    def itemsize(self) -> int:
        return {"float32": 4, "bfloat16": 2}[self.dtype]

    def decode_bytes(self, batch: int, context: float, projection_bytes: int = 0) -> float:
        """The least bytes that a decoding step reads: every weight, and keys and values of `context` tokens a row.

        Args:
          projection_bytes: of a weight of the projections; 0: as many as of the others.
        """
        cache = 2 * self.layers * self.kv_heads * self.head_dim * batch * context
        others = self.itemsize * (self.vocab_size * self.width + cache)
        return self.projections * (projection_bytes or self.itemsize) + others


SHAPES = {
    "tiny": Shape(
        layers=2, width=32, heads=2, kv_heads=1, head_dim=16, mlp_width=64, vocab_size=512, tied=True, dtype="float32",
        matmul=(128, 1), stream=(1 << 16, 1),
        rank=2, rows=2, row_length=64, texts=(16, 32), remats=(("none", "none"),),
        prefix_length=24, item_lengths=(8, 16), pairs=20, items=(1, 10, 100), score_batch=8,
        decode_batch=2, plain=(16, 8), guided=(32, 2), repeats=2,
    ),
    "small": Shape(
        layers=4, width=256, heads=8, kv_heads=4, head_dim=32, mlp_width=768, vocab_size=8192, tied=True,
        dtype="float32", matmul=(1536, 4), stream=(1 << 25, 2),
        rank=8, rows=8, row_length=256, texts=(64, 128), remats=(("none", "none"), ("full", "full")),
        prefix_length=192, item_lengths=(16, 32), pairs=200, items=(1, 10, 100), score_batch=20,
        decode_batch=8, plain=(16, 64), guided=(96, 4), repeats=9,
    ),
    # SmolLM2-135M.
    "135m": Shape(
        layers=30, width=576, heads=9, kv_heads=3, head_dim=64, mlp_width=1536, vocab_size=49152, tied=True,
        dtype="float32", matmul=(1536, 4), stream=(1 << 25, 2),
        rank=16, rows=4, row_length=512, texts=(128, 256), remats=(("none", "none"),),
        prefix_length=192, item_lengths=(32, 64), pairs=20, items=(1, 10), score_batch=10,
        decode_batch=8, plain=(16, 32), guided=(96, 4), repeats=5,
    ),
    # Qwen3-8B.
    "8b": Shape(
        layers=36, width=4096, heads=32, kv_heads=8, head_dim=128, mlp_width=12288, vocab_size=151936, tied=False,
        dtype="bfloat16", matmul=(8192, 20), stream=(1 << 30, 5),
        rank=16, rows=2, row_length=2048, texts=(256, 768), remats=(("full", "full"), ("dots", "full")),
        prefix_length=512, item_lengths=(64, 96), pairs=100, items=(10, 100), score_batch=25,
        decode_batch=32, plain=(32, 128), guided=(256, 4), repeats=3,
    ),
}  # fmt: skip


LABELS = (11, 12, 13, 14)
"""The tokens of the labels in scoring."""

FOLLOW = 15
"""A token after a label."""


def packed(shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of packed rows of random texts, whose loss is on the last third of each.

    Returns:
      `tokens`, `positions`, `segments` (from 1), `targets` [rows, row_length] int32, `targets_mask` bool: True where
      the next token is of the same text's completion.
    """
    rng = np.random.default_rng(seed)
    size = (shape.rows, shape.row_length)
    tokens = rng.integers(0, shape.vocab_size, size, dtype=np.int32)
    positions, segments = np.zeros(size, np.int32), np.zeros(size, np.int32)
    mask = np.zeros(size, bool)
    for row in range(shape.rows):
        start = text = 0
        while start < shape.row_length:
            length = int(rng.integers(*shape.texts, endpoint=True))
            # The last text ends with its row, so that there is no padding.
            end = start + length if start + length + shape.texts[0] <= shape.row_length else shape.row_length
            text += 1
            positions[row, start:end] = np.arange(end - start)
            segments[row, start:end] = text
            mask[row, end - 1 - (end - start) // 3 : end - 1] = True
            start = end
    targets = np.concatenate([tokens[:, 1:], np.zeros_like(tokens[:, :1])], axis=1)
    return {"tokens": tokens, "positions": positions, "segments": segments, "targets": targets, "targets_mask": mask}


def seen_packed(batch: dict[str, np.ndarray]) -> int:
    """(query, key) pairs that causality and segments allow."""
    return int((batch["positions"].astype(np.int64) + 1).sum())


def seen_causal(length: int, before: int = 0) -> int:
    """(query, key) pairs of `length` tokens that follow `before` others."""
    return length * before + length * (length + 1) // 2


def score_rows(shape: Shape, items: int, seed: int = 1) -> tuple[list[list[int]], list[int]]:
    """Prompts of random tokens, `items` for each query.

    Returns:
      The token ids of `shape.pairs` rows, those of one query together, which begin with `prefix_length` tokens of their
      own; and the query of each row.
    """
    rng = np.random.default_rng(seed)
    rows, queries = [], []
    for row in range(shape.pairs):
        if row % items == 0:
            prefix = rng.integers(16, shape.vocab_size, shape.prefix_length).tolist()
        item = rng.integers(16, shape.vocab_size, int(rng.integers(*shape.item_lengths, endpoint=True))).tolist()
        rows.append(prefix + item)
        queries.append(row // items)
    return rows, queries


def prompts(shape: Shape, rows: int, length: int, seed: int = 2) -> np.ndarray:
    """[rows, length] random tokens."""
    return np.random.default_rng(seed).integers(16, shape.vocab_size, (rows, length)).astype(np.int32)

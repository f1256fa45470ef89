"""Predictions and embeddings of a bundle by ONNX Runtime: texts in, numpy arrays out, in input order.

Texts become tokens as in training, so no text of a seller can forge a marker. Rows are sorted by length and run in
batches that hold at most a number of tokens, padding included. JAX computes nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import softmax
from transformers import PreTrainedTokenizerBase

from jax_rele import extras
from jax_rele.data.rows import as_pair
from jax_rele.data.tokens.evidence_tags import decode_evidence
from jax_rele.data.tokens.student_inputs import (
    cross_rows,
    pair_markers,
    tower_rows,
    unreadable_pairs,
    unreadable_texts,
)
from jax_rele.data.tokens.text_loss import TextLoss, summarize
from jax_rele.data.tokens.tokenizers import ENCODER_TOKENS, load_tokenizer
from jax_rele.deployment.bundle import MANIFEST, TWO_TOWER, Manifest, read_manifest
from jax_rele.errors import UserError
from jax_rele.types import VERDICTS, Item, LabelSchema, Pair, Span

if TYPE_CHECKING:
    import onnxruntime

BATCH_TOKENS = 8192
"""Most tokens of a batch, padding included."""

SIDES = ("query", "item")

Encoded = tuple[list[list[int]], list[list[int]]]
"""Tokens of pairs: a cross-encoder's rows and their types, or a two-tower's rows of queries and of items."""

ROUND = 8
"""Rows are padded to a multiple of this many tokens: kernels are faster, and fewer shapes occur."""


@dataclass(frozen=True)
class Scores:
    """Predictions for N pairs.

    Attributes:
      scores: [N] expected gains in [0, 1], from calibrated label probabilities.
      label_probs: [N, C].
      verdict_probs: [N, D, V]; None where the student's recipe teaches no verdicts.
      evidence: spans of each pair; None where the student's recipe teaches no evidence.
    """

    scores: np.ndarray
    label_probs: np.ndarray
    verdict_probs: np.ndarray | None = None
    evidence: tuple[tuple[Span, ...], ...] | None = None

    @property
    def verdicts(self) -> list[tuple[str, ...]] | None:
        """The likeliest verdict of each dimension, a tuple of names per pair."""
        if self.verdict_probs is None:
            return None
        return [tuple(VERDICTS[index] for index in row) for row in self.verdict_probs.argmax(axis=-1)]


@dataclass(frozen=True)
class Scorer:
    """A bundle, ready to judge. Threads may share one.

    Attributes:
      manifest: what the bundle holds.
      tokenizer: its tokenizer.
      sessions: its graphs by the name of the file.
      batch_tokens: most tokens of a batch, padding included.
    """

    manifest: Manifest
    tokenizer: PreTrainedTokenizerBase
    sessions: dict[str, onnxruntime.InferenceSession]
    batch_tokens: int = BATCH_TOKENS

    @property
    def schema(self) -> LabelSchema:
        """The labels."""
        return self.manifest.schema_

    @property
    def embeds(self) -> bool:
        """Whether query and item have embeddings of their own."""
        return self.manifest.model == "two_tower"

    def predict(self, pairs: Sequence[Pair | tuple[str, str | Item]], losses: list[np.ndarray] | None = None) -> Scores:
        """Judges pairs, in order; each a `Pair`, or the text of a query and an item.

        What of the texts is not read is appended to `losses`, see `data.tokens.text_loss.count_losses`. A pair of which
        nothing is known has a score that says nothing of it: `unreadable_pairs` names such pairs.
        """
        if isinstance(pairs, str) or not len(pairs):
            raise ValueError(f"predict needs a list of at least one pair, got {pairs!r:.80}")
        judged = [as_pair(pair) for pair in pairs]
        return self.predict_rows(self.encode(judged, losses), judged)

    def encode(self, pairs: Sequence[Pair], losses: list[np.ndarray] | None = None) -> Encoded:
        """The tokens that the student reads of pairs; what is lost is appended to `losses`."""
        if not self.embeds:
            return self.pair_rows(pairs, losses)
        self._check_unicode(pairs)
        return tower_rows(self.tokenizer, pairs, *self._limits, losses)

    def predict_rows(self, encoded: Encoded, pairs: Sequence[Pair]) -> Scores:
        """Judges pairs by their tokens."""
        if not self.embeds:
            return self.decode(self.run("model.onnx", *encoded), pairs)
        return self.compare(*(self._embeddings(side, rows) for side, rows in zip(SIDES, encoded)))

    def unreadable_pairs(self, encoded: Encoded, pairs: Sequence[Pair]) -> dict[int, tuple[str, str]]:
        """Pairs of which one text has no token that the student knows: index -> (its side, what is wrong), in order."""
        texts = [pair.query for pair in pairs], [self.item_text(pair.item) for pair in pairs]
        return unreadable_pairs(self.tokenizer, texts, encoded, embeds=self.embeds)

    def unreadable_rows(self, rows: Sequence[list[int]], texts: Sequence[str]) -> dict[int, str]:
        """Texts of a two-tower whose rows hold no token that it knows: index -> what is wrong."""
        before, after = map(len, pair_markers(self.tokenizer, 1))
        return unreadable_texts(self.tokenizer, texts, [row[before : len(row) - after] for row in rows])

    def unreadable(self, texts: Sequence[str | Item]) -> dict[int, str]:
        """Texts of which the student knows no token: index -> what is wrong."""
        plain = [self.item_text(text) if isinstance(text, Item) else text for text in texts]
        _check_unicode(plain)
        return unreadable_texts(self.tokenizer, plain)

    def decode(self, outputs: Mapping[str, np.ndarray], pairs: Sequence[Pair]) -> Scores:
        """Predictions from a cross-encoder's outputs for N pairs, see `raw_outputs`; evidence where they hold it."""
        evidence = None
        if "evidence_logits" in outputs:
            tags = [row.argmax(axis=-1) for row in outputs["evidence_logits"]]
            fields, *lengths = self._limits
            evidence = decode_evidence(self.tokenizer, pairs, tags, self.manifest.dimensions, fields, *lengths)
        return self._scores(outputs, evidence)

    def raw_outputs(self, pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
        """A cross-encoder's outputs by name; what is one per token is padded to the longest pair."""
        return self.run("model.onnx", *self.pair_rows(pairs))

    def pair_rows(self, pairs: Sequence[Pair], losses: list[np.ndarray] | None = None) -> Encoded:
        """The tokens that a cross-encoder reads of pairs, and their types; what is lost is appended to `losses`."""
        self._check_unicode(pairs)
        return cross_rows(self.tokenizer, pairs, *self._limits, losses)

    def _check_unicode(self, pairs: Sequence[Pair]) -> None:
        _check_unicode([text for pair in pairs for text in (pair.query, self.item_text(pair.item))])

    def _embeddings(self, side: str, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """The embeddings of rows of tokens; equal ones are computed once."""
        index = {row: number for number, row in enumerate(dict.fromkeys(map(tuple, rows)))}
        embedded = next(iter(self.run(f"{side}.onnx", list(index), None).values()))
        return embedded[[index[tuple(row)] for row in rows]]

    def text_loss(
        self, pairs: Sequence[Pair | tuple[str, str | Item]], losses: list[np.ndarray] | None = None
    ) -> TextLoss:
        """What of the pairs' texts the student does not read; appended to `losses` too, see `predict`."""
        losses = [] if losses is None else losses
        rows = tower_rows if self.embeds else cross_rows
        rows(self.tokenizer, [as_pair(pair) for pair in pairs], *self._limits, losses)
        return summarize(losses[-1:])

    def embed(self, texts: Sequence[str | Item], side: str) -> np.ndarray:
        """[N, E] float32 embeddings of texts, in order; with late interaction [N, L, E], zeros for padding.

        Args:
          texts: at least one query, or item (an `Item`, or its text).
          side: `query` or `item`.

        Raises:
          ValueError: there is no text, or there is no such side.
          UserError: the bundle holds a cross-encoder.
        """
        if not self.embeds:
            raise UserError("a cross-encoder has no embeddings of query and item; export the two_tower")
        if side not in SIDES:
            raise ValueError(f"side must be query or item, got {side!r}")
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"embed needs a list of at least one text, got {texts!r:.80}")
        rows = self.token_rows(texts, side)
        outputs = self.run(f"{side}.onnx", rows, None)
        return next(iter(outputs.values()))

    def token_rows(
        self, texts: Sequence[str | Item], side: str, losses: list[np.ndarray] | None = None
    ) -> list[list[int]]:
        """The tokens that a two-tower reads of texts; what is lost is appended to `losses`."""
        number = SIDES.index(side)
        plain = [self.item_text(text) if isinstance(text, Item) else text for text in texts]
        _check_unicode(plain)
        if side == "query":
            pairs = [Pair("", text, Item("", "")) for text in plain]
        else:
            pairs = [Pair("", "", Item("", text)) for text in plain]
        return tower_rows(self.tokenizer, pairs, ("title",), *self._limits[1:], losses)[number]

    def compare(self, query: np.ndarray, item: np.ndarray) -> Scores:
        """Judges pairs of embeddings: row i of `query` with row i of `item`."""
        inputs = {"query_embedding": query, "item_embedding": item}
        session = self.sessions["compare.onnx"]
        names = [each.name for each in session.get_outputs()]
        return self._scores(dict(zip(names, session.run(None, inputs))))

    @property
    def _limits(self) -> tuple[tuple[str, ...], int, int]:
        return self.manifest.fields, self.manifest.query_length, self.manifest.item_length

    def item_text(self, item: Item) -> str:
        """What is read of an item: its fields, joined by spaces."""
        return " ".join(text for _, text in item.texts(self.manifest.fields))

    def _scores(
        self, outputs: Mapping[str, np.ndarray], evidence: tuple[tuple[Span, ...], ...] | None = None
    ) -> Scores:
        probs = softmax(np.asarray(outputs["label_logits"], np.float64), axis=-1)
        verdicts = outputs.get("verdict_logits")
        if verdicts is not None:
            verdicts = softmax(np.asarray(verdicts, np.float64), axis=-1)
        return Scores(self.schema.expected_gain(probs), probs, verdicts, evidence)

    def run(
        self, name: str, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None
    ) -> dict[str, np.ndarray]:
        """The outputs of a graph for rows of tokens, in order; what is one per token is padded to the longest row."""
        session = self.sessions[name]
        names, known = [each.name for each in session.get_outputs()], {each.name for each in session.get_inputs()}
        whole: dict[str, np.ndarray] = {}
        longest = max(map(len, rows))
        for indices in token_batches([len(row) for row in rows], self.batch_tokens):
            length = -(-max(len(rows[index]) for index in indices) // ROUND) * ROUND
            length = min(length, self._most_tokens(name))
            tokens = np.full((len(indices), length), self.tokenizer.pad_token_id, np.int64)
            mask, kinds = np.zeros_like(tokens), np.zeros_like(tokens)
            for row, index in enumerate(indices):
                size = len(rows[index])
                tokens[row, :size], mask[row, :size] = rows[index], 1
                if types is not None:
                    kinds[row, :size] = types[index]
            inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": kinds}
            for output, value in zip(names, session.run(None, {key: inputs[key] for key in inputs if key in known})):
                per_token = output in ("evidence_logits", "token_embeddings")
                if output not in whole:
                    shape = (longest, *value.shape[2:]) if per_token else value.shape[1:]
                    whole[output] = np.zeros((len(rows), *shape), np.float32)
                if per_token:
                    whole[output][indices, : min(length, longest)] = value[:, :longest]
                else:
                    whole[output][indices] = value
        return whole

    def _most_tokens(self, name: str) -> int:
        manifest = self.manifest
        if name == "model.onnx":
            return manifest.query_length + manifest.item_length
        return manifest.query_length if name == "query.onnx" else manifest.item_length + 1


def load_bundle(folder: str | Path, *, threads: int = 0, batch_tokens: int = BATCH_TOKENS) -> Scorer:
    """A bundle's student, ready to judge.

    Args:
      folder: what `jax-rele export` wrote in the format `onnx` or `tei`.
      threads: of ONNX Runtime; 0 is one for each core. With several workers on a machine give each its share.
      batch_tokens: most tokens of a batch, padding included.

    Raises:
      UserError: the folder is no bundle, or is damaged; or the extra `deploy` is not installed.
    """
    extras.require("deploy", "bundles", "onnxruntime")
    import onnxruntime

    folder = Path(folder)
    manifest = read_manifest(folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Where 8-bit products saturate (x86 without VNNI), weights are taken as unsigned.
    options.add_session_config_entry("session.x64quantprecision", "1")
    # Waiting threads would take the cores from other workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads else "1")
    sessions = {}
    for name in manifest.graphs:
        try:
            sessions[name] = onnxruntime.InferenceSession(str(folder / name), options, ["CPUExecutionProvider"])
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{folder / name}: ONNX Runtime cannot load it: {reason}") from None
    _check_outputs(folder, manifest, sessions)
    return Scorer(manifest, load_tokenizer(folder, ENCODER_TOKENS), sessions, batch_tokens)


def token_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[np.ndarray]:
    """Indices of rows in batches of like lengths, longest first, each at most `batch_tokens` with its padding."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        padded = -(-lengths[order[start]] // ROUND) * ROUND
        size = max(1, batch_tokens // max(padded, 1))
        yield order[start : start + size]
        start += size


def _check_unicode(texts: Sequence[str]) -> None:
    """Raises UserError for a text that no tokenizer takes."""
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"{text!r:.40} is no text")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{text!r:.40} is not valid Unicode: it holds half a character") from None


def _check_outputs(folder: Path, manifest: Manifest, sessions: Mapping[str, onnxruntime.InferenceSession]) -> None:
    """Raises UserError where the graphs do not compute what the description says."""
    dimensions = len(manifest.dimensions)
    is_tower = manifest.model == "two_tower"
    judging = {
        "label_logits": [len(manifest.labels.names)],
        "verdict_logits": [dimensions, len(VERDICTS)] if manifest.has_verdicts else None,
        "evidence_logits": [1 + dimensions] if manifest.has_evidence and not is_tower else None,
    }
    for name, session in sessions.items():
        sizes = {each.name: [size for size in each.shape if isinstance(size, int)] for each in session.get_outputs()}
        expected: Mapping[str, list[int] | None] = judging
        if name in TWO_TOWER[:2]:
            # With late interaction each token has an embedding, which no index holds.
            expected = {} if manifest.head == "maxsim" else {next(iter(sizes)): [manifest.embedding_width]}
        for output, described in expected.items():
            if sizes.get(output) != described:
                raise UserError(
                    f"{folder / name}: damaged: the sizes of its output {output} are {sizes.get(output)}, and of "
                    f"{MANIFEST} {described}; export it again"
                )

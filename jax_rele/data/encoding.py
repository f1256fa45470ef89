"""Pairs and rationales -> arrays of token ids, for the teacher and for the students."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.data.packing import assign, lay_out
from jax_rele.errors import UserError
from jax_rele.rationale import grammar
from jax_rele.rationale.evidence import token_tags
from jax_rele.types import QUERY, Pair, Rationale, Span


def pad(rows: Sequence[Sequence[int]], length: int, value: int, dtype=np.int32) -> np.ndarray:
    """Ragged rows -> [N, length], cut or filled up with `value` on the right."""
    array = np.full((len(rows), length), value, dtype)
    for row, target in zip(rows, array):
        target[: min(len(row), length)] = row[:length]
    return array


# ---- teacher

MIN_PAIR_TOKENS = 8
"""Fewest tokens of a prompt that must be left for query and item."""


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    fields: Sequence[str],
    length: int,
    instructions: str = "",
) -> list[list[int]]:
    """The token ids of each pair's prompt, at most `length`: where it is longer, the end of the item's texts goes.

    Args:
      tokenizer: the teacher's; where it has a token for the beginning of a text, prompts begin with it.
      pairs: what to judge.
      fields: the item's texts.
      length: most tokens.
      instructions: text before the query.

    Raises:
      UserError: the instructions leave no room for a query and an item.
    """
    last = "judge:\n"
    tail = tokenizer.encode(last, add_special_tokens=False)
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    before = instructions.rstrip() + "\n" if instructions.strip() else ""
    keep = length - len(tail) - len(begin)
    used = len(tokenizer.encode(before, add_special_tokens=False))
    if keep - used < MIN_PAIR_TOKENS:
        raise UserError(
            f"teacher.prompt_length: of {length} tokens the instructions take {used} and leave fewer than "
            f"{MIN_PAIR_TOKENS} for query and item; make it larger or teacher.instructions shorter"
        )
    heads = [before + grammar.prompt(pair, fields).removesuffix(last) for pair in pairs]
    ids = tokenizer(heads, add_special_tokens=False)["input_ids"] if heads else []
    return [[*begin, *row[:keep], *tail] for row in ids]


@dataclass(frozen=True)
class Answer:
    """A rationale as tokens.

    Attributes:
      ids: token ids, ending with the tokenizer's end token.
      kinds: for each token the kind of its segment (`grammar.KINDS`); the end token is `fixed`.
    """

    ids: list[int]
    kinds: list[str]


class AnswerEncoder:
    """Tokenizes rationales segment by segment, so that the fixed parts and choices are always the same tokens.

    Decoding can therefore force the fixed parts, and the position of every verdict and of the label is known.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, order: str, value_length: int):
        self.order, self.value_length, self.end = order, value_length, tokenizer.eos_token_id
        # A run's rationales share few distinct segments.
        self._ids = cache(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))

    def segment_ids(self, text: str, kind: str) -> tuple[int, ...]:
        """Token ids of one segment; values longer than `value_length` are cut."""
        ids = self._ids(text)
        return ids[: self.value_length] if kind in ("query_values", "item_values") else ids

    def __call__(self, rationale: Rationale) -> Answer:
        ids, kinds = [], []
        for segment in grammar.segments(rationale, self.order):
            new = self.segment_ids(segment.text, segment.kind)
            ids += new
            kinds += [segment.kind] * len(new)
        return Answer([*ids, self.end], [*kinds, "fixed"])


def language_rows(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Answer],
    pad_id: int,
    pack_to: int = 0,
    *,
    prompt_weight: float = 0.0,
    kind_weights: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Rows for next-token training: prompt and answer joined and shifted by one, as `make_train_step` takes them.

    Args:
      prompts: token ids.
      answers: the completions.
      pad_id: fills rows up.
      pack_to: tokens of a row that holds several examples, no fewer than the longest takes. 0: one example a row, in
        order.
      prompt_weight: weight of the loss on a prompt token; 0 trains on completions alone.
      kind_weights: weight of the loss on an answer token by kind, 1 where a kind is not named.

    Returns:
      `inputs`: `tokens` [rows, length] int32 and, where rows are packed, `segments` and `positions`, which rows of one
      text do without; `targets`, `targets_mask` and `token_weights` as in `packing.lay_out`.

    Raises:
      ValueError: an example is longer than `pack_to`.
    """
    kind_weights = kind_weights or {}
    examples = [[*prompt, *answer.ids] for prompt, answer in zip(prompts, answers)]
    weights = [
        [prompt_weight] * len(prompt) + [kind_weights.get(kind, 1.0) for kind in answer.kinds]
        for prompt, answer in zip(prompts, answers)
    ]
    sizes = [len(example) - 1 for example in examples]
    rows = assign(sizes, pack_to) if pack_to else [[number] for number in range(len(sizes))]
    # A multiple of 8, as devices like it.
    length = pack_to or -(-max(sizes, default=1) // 8) * 8
    arrays = lay_out(examples, weights, rows, length, pad_id)
    names = ("tokens", "segments", "positions") if pack_to else ("tokens",)
    return {
        "inputs": {name: arrays[name] for name in names},
        **{name: arrays[name] for name in ("targets", "targets_mask", "token_weights")},
    }


# ---- students


@dataclass(frozen=True)
class _Text:
    ids: list[int]
    sources: list[tuple[str, tuple[int, int]]]
    """For each token the text that it comes from and its characters there."""


def _texts(tokenizer: PreTrainedTokenizerBase, parts: Sequence[Sequence[tuple[str, str]]], length: int) -> list[_Text]:
    """Tokenizes the (source, text) parts of each row and joins them, at most `length` tokens a row."""
    # A leading space makes a word the same token wherever it stands; offsets are shifted back.
    flat = [" " + text for row in parts for _, text in row]
    encoded = tokenizer(flat, add_special_tokens=False, return_offsets_mapping=True) if flat else None
    rows, at = [], 0
    for row in parts:
        ids: list[int] = []
        sources: list[tuple[str, tuple[int, int]]] = []
        for source, _ in row:
            ids += encoded["input_ids"][at]
            sources += [(source, (max(start - 1, 0), end - 1)) for start, end in encoded["offset_mapping"][at]]
            at += 1
        rows.append(_Text(ids[:length], sources[:length]))
    return rows


def _sides(tokenizer, pairs, fields, query_length, item_length) -> tuple[list[_Text], list[_Text]]:
    # Two of the query's tokens and one of the item's are markers.
    queries = _texts(tokenizer, [[(QUERY, pair.query)] for pair in pairs], query_length - 2)
    items = _texts(tokenizer, [list(pair.item.texts(fields)) for pair in pairs], item_length - 1)
    return queries, items


def encode_towers(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    fields: Sequence[str],
    query_length: int,
    item_length: int,
) -> dict[str, np.ndarray]:
    """The two-tower's inputs: `[CLS] text [SEP]` a side.

    Returns:
      `query_tokens` [N, query_length], `item_tokens` [N, item_length + 1] int32, and `query_valid`, `item_valid` bool.
    """
    queries, items = _sides(tokenizer, pairs, fields, query_length, item_length)
    inputs = {}
    for side, texts, length in (("query", queries, query_length), ("item", items, item_length + 1)):
        rows = [[tokenizer.cls_token_id, *text.ids, tokenizer.sep_token_id] for text in texts]
        inputs[f"{side}_tokens"] = pad(rows, length, tokenizer.pad_token_id)
        inputs[f"{side}_valid"] = pad([[True] * len(row) for row in rows], length, False, bool)
    return inputs


def encode_cross(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    fields: Sequence[str],
    query_length: int,
    item_length: int,
) -> dict[str, np.ndarray]:
    """The cross-encoder's inputs: `[CLS] query [SEP] item [SEP]`.

    Returns:
      `tokens`, `token_types` [N, query_length + item_length] int32 and `valid` bool.
    """
    queries, items = _sides(tokenizer, pairs, fields, query_length, item_length)
    length = query_length + item_length
    rows, types = [], []
    for query, item in zip(queries, items):
        rows.append([tokenizer.cls_token_id, *query.ids, tokenizer.sep_token_id, *item.ids, tokenizer.sep_token_id])
        types.append([0] * (len(query.ids) + 2) + [1] * (len(item.ids) + 1))
    return {
        "tokens": pad(rows, length, tokenizer.pad_token_id),
        "token_types": pad(types, length, 0),
        "valid": pad([[True] * len(row) for row in rows], length, False, bool),
    }


def encode_evidence(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    evidence: Sequence[Sequence[Span]],
    dimensions: Sequence[str],
    fields: Sequence[str],
    query_length: int,
    item_length: int,
) -> dict[str, np.ndarray]:
    """The evidence tags of the cross-encoder's tokens.

    Returns:
      `evidence_tags` [N, query_length + item_length] int32, 0 for none and 1 + d for dimension d, and
      `evidence_tags_mask` bool, True for tokens of the texts.
    """
    queries, items = _sides(tokenizer, pairs, fields, query_length, item_length)
    tags, masks = [], []
    for query, item, spans in zip(queries, items, evidence):
        row = [0, *_tags(query, spans, dimensions), 0, *_tags(item, spans, dimensions), 0]
        mask = [False, *[True] * len(query.ids), False, *[True] * len(item.ids), False]
        tags.append(row)
        masks.append(mask)
    length = query_length + item_length
    return {"evidence_tags": pad(tags, length, 0), "evidence_tags_mask": pad(masks, length, False, bool)}


def _tags(text: _Text, spans: Sequence[Span], dimensions: Sequence[str]) -> list[int]:
    tags = [0] * len(text.ids)
    for source in dict.fromkeys(source for source, _ in text.sources):
        places = [place for place, (name, _) in enumerate(text.sources) if name == source]
        found = token_tags(spans, source, [text.sources[place][1] for place in places], dimensions)
        for place, tag in zip(places, found):
            tags[place] = tag
    return tags

"""Pairs and rationales -> token ids for the teacher: prompts, answers, and rows for next-token training."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from transformers import PreTrainedTokenizerBase

from jax_rele.data.tokens.chat import protect, render_chat
from jax_rele.data.tokens.packing import lay_out, pack_examples
from jax_rele.rationale import grammar
from jax_rele.types import Pair, PyTree, Rationale

_LAST = "judge:\n"
"""The last line of a prompt that is no chat."""


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    fields: Sequence[str],
    length: int,
    instructions: str = "",
    chat: bool = False,
) -> list[list[int]]:
    """The token ids of each pair's prompt: instructions, query and item.

    Args:
      tokenizer: the teacher's. Where it has a token for the beginning of a text, prompts begin with it.
      pairs: what to judge.
      fields: the item's texts in the prompt.
      length: most tokens of a prompt besides its instructions and chat template. Where it is longer, the end of the
        item's texts is cut.
      instructions: the text before the query.
      chat: whether the prompt is a chat, by the tokenizer's template.

    Raises:
      UserError: the chat template cannot be used.
    """
    if not pairs:
        return []
    if chat:
        return _encode_chats(tokenizer, pairs, fields, length, instructions)
    tail = tokenizer.encode(_LAST, add_special_tokens=False)
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    before = _text_before(instructions)
    limit = max_prompt_length(tokenizer, length, instructions) - len(tail) - len(begin)
    heads = [before + grammar.prompt(pair, fields).removesuffix(_LAST) for pair in pairs]
    ids = tokenizer(heads, add_special_tokens=False)["input_ids"]
    return [[*begin, *row[:limit], *tail] for row in ids]


def max_prompt_length(
    tokenizer: PreTrainedTokenizerBase, length: int, instructions: str = "", chat: bool = False
) -> int:
    """Most tokens of a prompt, instructions and chat template included; arguments as of `encode_prompts`."""
    if not chat:
        return length + len(tokenizer.encode(_text_before(instructions), add_special_tokens=False))
    frame = render_chat(tokenizer, instructions)
    ids = tokenizer.encode(frame.before + frame.after, add_special_tokens=False, split_special_tokens=False)
    return length + len(ids)


def _text_before(instructions: str) -> str:
    return instructions.rstrip() + "\n" if instructions.strip() else ""


def _encode_chats(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], fields: Sequence[str], length: int, instructions: str
) -> list[list[int]]:
    frame = render_chat(tokenizer, instructions)
    texts = [protect(tokenizer, grammar.prompt(pair, fields).removesuffix("\n" + _LAST)) for pair in pairs]
    # Texts are tokenized within the template, since some tokenizers treat the beginning of a text apart.
    encoded = tokenizer(
        [frame.before + text + frame.after for text in texts],
        add_special_tokens=False,
        split_special_tokens=False,
        return_offsets_mapping=True,
    )
    rows = []
    for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"]):
        ends = [end for _, end in offsets]
        first, last = (bisect_right(ends, len(frame.before) + size) for size in (0, len(text)))
        rows.append([*ids[: min(last, first + length)], *ids[last:]])
    return rows


@dataclass(frozen=True)
class Answer:
    """A rationale as tokens.

    Attributes:
      ids: token ids, ending with the tokenizer's end token; in a chat, with that of a turn.
      kinds: for each token the kind of its segment (`grammar.KINDS`); the end token is `fixed`.
    """

    ids: list[int]
    kinds: list[str]


class AnswerEncoder:
    """Tokenizes rationales segment by segment, so that the fixed parts and choices are always the same tokens.

    Decoding can therefore force the fixed parts, and the position of every verdict and of the label is known.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, order: str, value_length: int, *, chat: bool = False):
        self.order, self.value_length = order, value_length
        self.end = render_chat(tokenizer).end if chat else tokenizer.eos_token_id
        # A run's rationales share few distinct segments.
        self._ids = cache(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))

    def segment_ids(self, text: str, kind: str) -> tuple[int, ...]:
        """Token ids of one segment; values longer than `value_length` are cut."""
        ids = self._ids(text)
        return ids[: self.value_length] if kind in ("query_values", "item_values") else ids

    def __call__(self, rationale: Rationale) -> Answer:
        ids: list[int] = []
        kinds: list[str] = []
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
) -> dict[str, PyTree]:
    """Rows for next-token training: prompt and answer joined and shifted by one, as `make_train_step` takes them.

    Args:
      prompts: token ids.
      answers: the completions.
      pad_id: fills rows up.
      pack_to: tokens of a row that holds several examples, no fewer than the longest takes. 0: one example per row.
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
    rows = pack_examples(sizes, pack_to) if pack_to else [[number] for number in range(len(sizes))]
    # A multiple of 8, as devices like it.
    length = pack_to or -(-max(sizes, default=1) // 8) * 8
    arrays = lay_out(examples, weights, rows, length, pad_id)
    names = ("tokens", "segments", "positions") if pack_to else ("tokens",)
    return {
        "inputs": {name: arrays[name] for name in names},
        **{name: arrays[name] for name in ("targets", "targets_mask", "token_weights")},
    }

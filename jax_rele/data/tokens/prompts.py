"""Pairs and rationales -> token ids for the teacher: prompts, answers, and rows for next-token training."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import regex
from transformers import PreTrainedTokenizerBase

from jax_rele.data.tokens.chat import protect, render_chat
from jax_rele.data.tokens.packing import lay_out, pack_examples
from jax_rele.data.tokens.student_inputs import longest_first
from jax_rele.data.tokens.text_loss import merged_rows
from jax_rele.errors import UserError
from jax_rele.rationale import grammar
from jax_rele.text import clean_text
from jax_rele.types import Pair, PyTree, Rationale

_QUERY, _LAST = "query: ", "judge:\n"
"""The beginning of a prompt's first line, and its last line where it is no chat."""

_PART_OF_ESCAPE = re.compile(r"((?:\A|[^\\])(?:\\\\)*)\\(?:u[0-9a-f]{0,3})?\Z")


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    fields: Sequence[str],
    length: int,
    instructions: str = "",
    chat: bool = False,
    losses: list[np.ndarray] | None = None,
) -> list[list[int]]:
    """The token ids of each pair's prompt: instructions, query and item.

    Where a prompt is too long, the longer of query and item loses its end, then both evenly, see
    `student_inputs.longest_first`: an item never disappears behind its query. Cuts fall between characters, and the
    words that ask for the answer stay.

    Args:
      tokenizer: the teacher's. Where it has a token for the beginning of a text, prompts begin with it.
      pairs: what to judge.
      fields: the item's texts in the prompt.
      length: most tokens of a prompt besides its instructions and chat template.
      instructions: the text before the query.
      chat: whether the prompt is a chat, by the tokenizer's template.
      losses: what of the pairs is lost is appended, see `text_loss.count_losses`.

    Raises:
      UserError: the chat template cannot be used, or `length` is too small for the prompt's own words.
    """
    if not pairs:
        return []
    encode = _chat_encoder(tokenizer, instructions) if chat else _encoder(tokenizer, instructions)
    limit = max_prompt_length(tokenizer, length, instructions, chat)
    parts = [_Prompt.of(pair, fields) for pair in pairs]
    rows = encode([part.text for part in parts])
    counts = []
    for index, (part, row) in enumerate(zip(parts, rows)):
        shown = part
        while len(rows[index]) > limit:
            shorter = shown.shortened(tokenizer, len(rows[index]) - limit)
            if shorter == shown:
                raise UserError(
                    f"teacher.prompt_length: {length} tokens do not hold the prompt's own words; raise it by at least "
                    f"{len(rows[index]) - limit}"
                )
            shown = shorter
            (rows[index],) = encode([shown.text])
        if losses is not None:
            counts.append(_loss(tokenizer, part, shown, len(row) - limit + length, row))
    if losses is not None:
        merged = merged_rows(rows, [part.text for part in parts])
        losses.append(np.array([[*count, other] for count, other in zip(counts, merged)], np.int32))
    return rows


@dataclass(frozen=True)
class _Prompt:
    """A prompt's lines: the query's text, and those of the item; both escaped."""

    query: str
    item: str

    @classmethod
    def of(cls, pair: Pair, fields: Sequence[str]) -> _Prompt:
        texts = {field: clean_text(text) for field, text in pair.item.texts(fields)}
        cleaned = replace(pair, query=clean_text(pair.query), item=replace(pair.item, **texts))  # type: ignore[arg-type]
        query, _, item = grammar.prompt(cleaned, fields).removeprefix(_QUERY).partition("\n")
        return cls(query, item.removesuffix(_LAST))

    @property
    def text(self) -> str:
        """All lines but the last, with their ends."""
        return f"{_QUERY}{self.query}\n{self.item}"

    def shortened(self, tokenizer: PreTrainedTokenizerBase, excess: int) -> _Prompt:
        """With so many tokens fewer, as far as there are so many."""
        item = self.item.removesuffix("\n")
        (query_ends, item_ends) = (_token_ends(tokenizer, text) for text in (self.query, item))
        total = len(query_ends) + len(item_ends)
        lengths = longest_first(len(query_ends), len(item_ends), max(total - excess, 0))
        query = _cut_text(self.query, query_ends, lengths[0])
        item = _cut_text(item, item_ends, lengths[1])
        # A line without its text, or with a part of its name, says nothing.
        whole, _, last = item.rpartition("\n")
        if ": " not in last and (last or whole):
            item = whole
        return _Prompt(query, item + "\n" if item else "")


def _token_ends(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Where each token of a text ends."""
    if not text:
        return []
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [end for _, end in offsets]


def _cut_text(text: str, ends: Sequence[int], count: int) -> str:
    """The text of the first `count` tokens, without parts of a character or of an escape."""
    if count >= len(ends):
        return text
    # Tokens that are parts of one character end where it ends.
    while count and ends[count - 1] >= ends[count]:
        count -= 1
    cut = ends[count - 1] if count else 0
    # Marks stay with their letter.
    whole = max((match.end() for match in regex.finditer(r"\X", text) if match.end() <= cut), default=0)
    return _PART_OF_ESCAPE.sub(r"\1", text[:whole])


def _loss(
    tokenizer: PreTrainedTokenizerBase, whole: _Prompt, shown: _Prompt, tokens: int, row: Sequence[int]
) -> list[int]:
    """The counts of a prompt but the last, see `text_loss.COLUMNS`."""
    unknown = tokenizer.unk_token_id
    cut = [0, 0]
    if shown != whole:
        sides = ((whole.query, shown.query), (whole.item, shown.item))
        cut = [len(_token_ends(tokenizer, a)) - len(_token_ends(tokenizer, b)) for a, b in sides]
    return [max(tokens, 0), 0 if unknown is None else row.count(unknown), *cut]


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


def _encoder(tokenizer: PreTrainedTokenizerBase, instructions: str) -> Callable[[list[str]], list[list[int]]]:
    """Lines of prompts -> their tokens, between the instructions and the line that asks for the answer."""
    tail = tokenizer.encode(_LAST, add_special_tokens=False)
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    before = _text_before(instructions)

    def encode(texts: list[str]) -> list[list[int]]:
        ids = tokenizer([before + text for text in texts], add_special_tokens=False, verbose=False)["input_ids"]
        return [[*begin, *row, *tail] for row in ids]

    return encode


def _chat_encoder(tokenizer: PreTrainedTokenizerBase, instructions: str) -> Callable[[list[str]], list[list[int]]]:
    """Lines of prompts -> their tokens within the chat template."""
    frame = render_chat(tokenizer, instructions)

    def encode(texts: list[str]) -> list[list[int]]:
        # Texts are tokenized within the template, since some tokenizers treat the beginning of a text apart.
        whole = [frame.before + protect(tokenizer, text.removesuffix("\n")) + frame.after for text in texts]
        ids = tokenizer(whole, add_special_tokens=False, split_special_tokens=False, verbose=False)["input_ids"]
        return [list(row) for row in ids]

    return encode


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
        self._ids = cache(lambda text: tuple(tokenizer.encode(clean_text(text), add_special_tokens=False)))

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

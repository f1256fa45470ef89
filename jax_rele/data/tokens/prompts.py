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
from jax_rele.data.tokens.pair_texts import PairTexts
from jax_rele.data.tokens.student_inputs import longest_first
from jax_rele.data.tokens.text_loss import count_characters, hash_text, hash_tokens
from jax_rele.errors import UserError
from jax_rele.rationale import grammar
from jax_rele.text import clean_text
from jax_rele.types import Pair, PyTree, Rationale

_QUERY, _TITLE, _LAST = "query: ", "title: ", "judge:\n"
"""The beginnings of the lines of query and title, and a prompt's last line where it is no chat."""

_LONGEST_CHARACTER = 32
"""Code points of a letter with its marks that is never cut: a letter and the 30 marks of the Stream-Safe Text Format
(UAX 15) need no more. Longer ones are no text that somebody reads, and must not cost an item its whole title."""

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
    `student_inputs.longest_first`: an item never disappears behind its query. Where that leaves the title less than a
    quarter of the tokens, query and other fields are cut further. Cuts fall between characters, and the words that ask
    for the answer stay.

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
    cut, whole, unknown = [], list(rows), tokenizer.unk_token_id
    for index, part in enumerate(parts):
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
            cut.append(_tokens_cut(tokenizer, part, shown))
    if losses is not None:
        texts = PairTexts(tokenizer, pairs, fields)
        both = [text for side in zip(texts.queries.texts, texts.items.texts) for text in side]
        characters = count_characters(tokenizer, both, [row for row in whole for _ in range(2)])
        counts = zip(whole, np.add(characters[::2], characters[1::2]), cut, rows, texts.identities())
        losses.append(
            np.array(
                [
                    [
                        *(max(len(all_ids) - limit + length, 0), 0 if unknown is None else all_ids.count(unknown)),
                        *(*of_texts, *of_both, hash_tokens(ids), hash_text(identity)),
                    ]
                    for all_ids, of_texts, of_both, ids, identity in counts
                ],
                np.int64,
            )
        )
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
        item = _whole_lines(_cut_text(item, item_ends, lengths[1]))
        shorter = _Prompt(query, item + "\n" if item else "")
        return shorter if self._holds_title(tokenizer, shorter, sum(lengths)) else self._around_title(tokenizer, excess)

    def _title(self) -> tuple[int, list[str]]:
        """The item's lines, and the index of its title; without one its first line stands for it."""
        lines = self.item.removesuffix("\n").split("\n")
        return next((index for index, line in enumerate(lines) if line.startswith(_TITLE)), 0), lines

    def _holds_title(self, tokenizer: PreTrainedTokenizerBase, shorter: _Prompt, budget: int) -> bool:
        """Whether a shorter prompt has so much of the title as is its due."""
        index, lines = self._title()
        shown = shorter.item.removesuffix("\n").split("\n")
        title = shown[index] if index < len(shown) else ""
        if title == lines[index]:
            return True
        tokens = _token_ends(tokenizer, lines[index])
        return len(_token_ends(tokenizer, title)) >= _due(lines[index], tokens, budget)

    def _around_title(self, tokenizer: PreTrainedTokenizerBase, excess: int) -> _Prompt:
        """As `shortened`, but that query and other fields make room for the title."""
        index, lines = self._title()
        rest = "\n".join([*lines[:index], *lines[index + 1 :]])
        query_ends, title_ends, rest_ends = (_token_ends(tokenizer, text) for text in (self.query, lines[index], rest))
        budget = max(len(query_ends) + len(title_ends) + len(rest_ends) - excess, 0)
        due = min(_due(lines[index], title_ends, budget), budget)
        of_query, of_rest = longest_first(len(query_ends), len(rest_ends), budget - due)
        title = _cut_text(lines[index], title_ends, budget - of_query - of_rest)
        # What a character too long for the rest of the title's tokens leaves goes back to the others.
        used = sum(end <= len(title) for end in title_ends)
        of_query, of_rest = longest_first(len(query_ends), len(rest_ends), budget - used)
        others = _whole_lines(_cut_text(rest, rest_ends, of_rest)).split("\n")
        shown = [line for line in (*others[:index], _whole_lines(title), *others[index:]) if line]
        return _Prompt(_cut_text(self.query, query_ends, of_query), "".join(f"{line}\n" for line in shown))


def _due(title: str, ends: Sequence[int], budget: int) -> int:
    """The tokens that a title's line has of a budget, if it is so long: a quarter, and a character after its name."""
    name = len(title.partition(": ")[0]) + 2
    counts = range(sum(end <= name for end in ends) + 1, len(ends) + 1)
    # A character or an escape may take several tokens.
    least = next((count for count in counts if len(_cut_text(title, ends, count)) > name), len(ends))
    return min(len(ends), max(budget // 4, least))


def _whole_lines(item: str) -> str:
    """The lines of an item without a last one that has no text, or a part of its name alone."""
    whole, _, last = item.rpartition("\n")
    return whole if ": " not in last and (last or whole) else item


def _token_ends(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Where each token of a text ends."""
    if not text:
        return []
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [end for _, end in offsets]


def _cut_text(text: str, ends: Sequence[int], count: int) -> str:
    """The text of the first `count` tokens, without parts of an escape or of a character, unless it is endless."""
    if count >= len(ends):
        return text
    # Tokens that are parts of one character end where it ends.
    while count and ends[count - 1] >= ends[count]:
        count -= 1
    cut = ends[count - 1] if count else 0
    whole = 0
    for character in regex.finditer(r"\X", text):  # marks stay with their letter
        if character.end() > cut:
            whole = cut if len(character[0]) > _LONGEST_CHARACTER else whole
            break
        whole = character.end()
    return _PART_OF_ESCAPE.sub(r"\1", text[:whole])


def _tokens_cut(tokenizer: PreTrainedTokenizerBase, whole: _Prompt, shown: _Prompt) -> list[int]:
    """How many tokens of a prompt's query and of its item are cut."""
    if shown == whole:
        return [0, 0]
    sides = ((whole.query, shown.query), (whole.item, shown.item))
    return [len(_token_ends(tokenizer, a)) - len(_token_ends(tokenizer, b)) for a, b in sides]


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

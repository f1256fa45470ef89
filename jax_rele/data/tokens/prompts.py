"""Pairs and rationales -> token ids for the teacher: prompts, answers, and rows for next-token training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from transformers import PreTrainedTokenizerBase

from jax_rele.data.tokens.packing import lay_out, pack_examples
from jax_rele.errors import UserError
from jax_rele.rationale import grammar
from jax_rele.types import Pair, PyTree, Rationale

MIN_PAIR_TOKENS = 8
"""Fewest tokens of a prompt that must be left for query and item."""


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    fields: Sequence[str],
    length: int,
    instructions: str = "",
) -> list[list[int]]:
    """The token ids of each pair's prompt, at most `length`: where it is longer, the end of the item's texts is cut.

    Where the tokenizer has a token for the beginning of a text, prompts begin with it; `instructions` are the text
    before the query.

    Raises:
      UserError: the instructions leave too few tokens for a query and an item.
    """
    last = "judge:\n"
    tail = tokenizer.encode(last, add_special_tokens=False)
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    before = instructions.rstrip() + "\n" if instructions.strip() else ""
    limit = length - len(tail) - len(begin)
    used = len(tokenizer.encode(before, add_special_tokens=False))
    if limit - used < MIN_PAIR_TOKENS:
        raise UserError(
            f"teacher.prompt_length: of {length} tokens the instructions take {used} and leave fewer than "
            f"{MIN_PAIR_TOKENS} for query and item; make it larger or teacher.instructions shorter"
        )
    heads = [before + grammar.prompt(pair, fields).removesuffix(last) for pair in pairs]
    ids = tokenizer(heads, add_special_tokens=False)["input_ids"] if heads else []
    return [[*begin, *row[:limit], *tail] for row in ids]


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

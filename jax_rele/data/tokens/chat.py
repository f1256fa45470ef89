"""Chat templates of instruct models, rendered once around placeholders: no text of a pair meets the template's code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from jax_rele.data.rows import one_line
from jax_rele.errors import UserError

_INSTRUCTIONS, _PAIR, _ANSWER = "INSTRUCTIONSHERE", "PAIRHERE", "ANSWERHERE"

_FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""Templates that show the day would make a run's prompts differ from day to day."""


@dataclass(frozen=True)
class ChatFrame:
    """A rendered chat with a gap for the pair.

    Attributes:
      before: text before the pair: the markers of roles and the instructions.
      after: text between the pair and the answer.
      end: the token that ends the answer.
    """

    before: str
    after: str
    end: int


def render_chat(tokenizer: PreTrainedTokenizerBase, instructions: str = "") -> ChatFrame:
    """Renders the tokenizer's chat template: instructions as the system's turn, the pair as the user's.

    Where a template has no turn of the system, or ignores it, instructions are the beginning of the user's turn.

    Raises:
      UserError: the template cannot be rendered, or does not show the user's text exactly once.
    """
    instructions = protect(tokenizer, instructions.strip())
    user = {"role": "user", "content": _PAIR}
    rendered = ""
    if instructions:
        system = {"role": "system", "content": _INSTRUCTIONS}
        try:
            rendered = _render(tokenizer, [system, user], add_generation_prompt=True)
        except Exception:  # a template can raise anything; many do so where they know no system role
            rendered = ""
        if rendered.count(_INSTRUCTIONS) != 1:
            user = {"role": "user", "content": f"{_INSTRUCTIONS}\n\n{_PAIR}"}
            rendered = ""
    try:
        rendered = rendered or _render(tokenizer, [user], add_generation_prompt=True)
        answered = _render(tokenizer, [user, {"role": "assistant", "content": _ANSWER}])
    except Exception as error:
        raise _unusable(f"cannot be rendered ({one_line(error)})") from None
    placeholders = [_PAIR, *([_INSTRUCTIONS] if instructions else [])]
    if any(rendered.count(name) != 1 for name in placeholders) or answered.count(_ANSWER) != 1:
        raise _unusable("does not show the texts of its turns once each")
    before, after = (part.replace(_INSTRUCTIONS, instructions) for part in rendered.split(_PAIR))
    return ChatFrame(before, after, _end_of_turn(tokenizer, answered.partition(_ANSWER)[2]))


def protect(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with the first character of every added token that it spells out as an escape of the grammar.

    So no text makes a role marker or another special token. Added tokens of blanks are text.
    """
    spelled = sorted({str(token) for token in tokenizer.added_tokens_decoder.values()}, key=len, reverse=True)
    markers = "|".join(re.escape(token) for token in spelled if token.strip())
    return re.sub(markers, lambda match: f"\\u{ord(match[0][0]):04x}{match[0][1:]}", text) if markers else text


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False
) -> str:
    rendered = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        chat_template=_FIXED_DATE + tokenizer.get_chat_template(),
        add_generation_prompt=add_generation_prompt,
        tokenize=False,
        # Qwen3's template has the model reason before its answer otherwise.
        enable_thinking=False,
    )
    return str(rendered)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, rest: str) -> int:
    """The first special token after an answer; the tokenizer's end token where there is none."""
    ids = tokenizer.encode(rest, add_special_tokens=False, split_special_tokens=False)
    added = tokenizer.added_tokens_decoder
    return next((token for token in ids if token in added and str(added[token]).strip()), tokenizer.eos_token_id)


def _unusable(reason: str) -> UserError:
    return UserError(f"teacher.chat_template: the tokenizer's template {reason}; set it to none or change the template")

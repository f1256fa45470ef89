"""Continuous batching: prompts are prefilled in groups, and waiting rows take over the slots of finished ones."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jax_rele.data.batches.loader import row_count
from jax_rele.data.tokens.packing import MIN_BATCHES, pad
from jax_rele.models import Decoder
from jax_rele.teacher.decoding import Sampling, decode, insert, new_slots
from jax_rele.teacher.kv_cache import (
    SMALLEST,
    base_cache,
    bucket,
    buckets,
    prefill,
    row_parts,
    shared_base,
    use_mesh,
)
from jax_rele.teacher.template import DecodingTemplate
from jax_rele.types import PyTree

STEP_TOKENS = {"cpu": 64}
"""Tokens over all rows up to which a wider step costs little, by platform."""


@dataclass(frozen=True)
class GeneratedText:
    """The text that was generated for one row.

    Attributes:
      slots: the tokens of the slot of each decision.
      choices: for each decision the index of the chosen alternative, -1 for a value.
      probs: [D, K] distributions over the alternatives of choices; the rows of values are undefined.
      decided: number of decisions of the model; each token of a value and its end count as one.
    """

    slots: tuple[tuple[int, ...], ...]
    choices: tuple[int, ...]
    probs: np.ndarray
    decided: int


def row_key(prompt: Sequence[int], sample: int) -> tuple[int, int]:
    """The key of a row's random numbers: it depends on the prompt and the sample, not on the position in the batch."""
    return zlib.crc32(np.array(prompt, np.int32).tobytes()), sample


def step_width(template: DecodingTemplate, rows: int) -> int:
    """Tokens of each row that one forward pass reads, limited by `STEP_TOKENS` over all rows."""
    return min(template.max_pending, max(1, STEP_TOKENS.get(jax.default_backend(), 128) // rows))


def generate(
    model: Decoder,
    variables: PyTree,
    template: DecodingTemplate,
    prompts: Sequence[Sequence[int]],
    prefixes: Sequence[Sequence[Sequence[int]]],
    *,
    batch_size: int,
    sampling: Sampling,
    mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> tuple[list[list[GeneratedText]], int]:
    """Generates text that follows a decoding template.

    A row's random numbers depend only on the seed, its prompt, its sample and the decision, so its text depends neither
    on the other prompts nor on its slot.

    Args:
      model, variables: the decoder and its parameters.
      template: the template that is followed.
      prompts: token ids, at least one each; every prompt is read once.
      prefixes: for each prompt and each of its samples the tokens between prompt and first decision, at least one. They
        end with `template.prefix`.
      batch_size: maximum number of slots, a multiple of the devices over which the rows are divided.
      sampling: how tokens are drawn.
      mesh: the devices that the variables live on.
      progress: called with the number of rows that have finished since the last call.

    Returns:
      The generated text of each prompt and sample, and the number of forward passes that decoding took.
    """
    written: list[list[PyTree]] = [[None] * len(samples) for samples in prefixes]
    total = sum(map(len, written))
    if not total:
        return written, 0
    parts = row_parts(mesh)
    slots = row_count(total, batch_size, parts)
    # Rows are inserted in batches: a compromise between few calls and few idle slots.
    insert_size = max(1, slots // 4)
    base = shared_base(prompts)
    group_size = row_count(-(-insert_size * len(prompts) // total), slots, parts)
    groups = _groups(prompts, len(base), group_size, slots)
    longest_prefix = max(len(prefix) for samples in prefixes for prefix in samples)
    max_pending = max(template.max_pending, longest_prefix)
    longest_prompt = bucket(len(base)) + max(length for _, length in groups)
    longest = longest_prompt + longest_prefix + template.longest - len(template.prefix)
    waiting: deque[tuple[int, int, int]] = deque()  # (row of the group's cache, prompt, sample)
    free = deque(range(slots))
    active: dict[int, tuple[int, int]] = {}  # slot -> (prompt, sample)
    with use_mesh(mesh):
        shared = base_cache(model, variables, base, parts)
        state = new_slots(model, variables, template, slots, SMALLEST * -(-longest // SMALLEST), max_pending)
        while True:
            while free and (waiting or groups):
                if not waiting:
                    members, length = groups.popleft()
                    rests = [prompts[prompt][len(base) :] for prompt in members] + [()] * (group_size - len(members))
                    zeros = np.zeros(group_size, np.int32)
                    cache = prefill(model, variables, shared, zeros, pad(rests, length, 0), zeros + len(base))
                    waiting.extend(
                        (row, prompt, sample)
                        for row, prompt in enumerate(members)
                        for sample in range(len(prefixes[prompt]))
                    )
                admitted = [
                    (*waiting.popleft(), free.popleft()) for _ in range(min(len(free), len(waiting), insert_size))
                ]
                state = insert(
                    state, cache, *_insert_arguments(admitted, prompts, prefixes, insert_size, max_pending, slots)
                )
                active |= {slot: (prompt, sample) for _, prompt, sample, slot in admitted}
            if not active:
                return written, int(state.passes)
            state = decode(
                model,
                variables,
                template,
                state,
                slots - insert_size if waiting or groups else 0,
                width=step_width(template, slots),
                **sampling.arguments,
            )
            decisions, *arrays = jax.device_get(
                (state.decision, state.decided, state.written, state.lengths, state.probs)
            )
            finished = [slot for slot in active if decisions[slot] == len(template.choice)]
            for slot in finished:
                prompt, sample = active.pop(slot)
                written[prompt][sample] = _make_text(template, *(array[slot] for array in arrays))
            free.extend(finished)
            progress(len(finished))


def _groups(prompts: Sequence[Sequence[int]], base: int, most: int, slots: int) -> deque[tuple[list[int], int]]:
    """(prompts of one prefill call, their padded length without the base), prompts of similar length in one group."""
    lengths = buckets([len(prompt) - base for prompt in prompts], MIN_BATCHES * slots)
    order = np.argsort(lengths, kind="stable")
    groups: deque[tuple[list[int], int]] = deque()
    for length in np.unique(lengths).tolist():
        members = order[lengths[order] == length].tolist()
        groups.extend((members[start : start + most], length) for start in range(0, len(members), most))
    return groups


def _insert_arguments(admitted, prompts, prefixes, count: int, max_pending: int, slots: int) -> tuple[np.ndarray, ...]:
    """The arguments of `insert` for (row of the cache, prompt, sample, slot) each, filled up to `count`."""
    source, prompt_of, sample_of, slot_of = (np.array(column) for column in zip(*admitted))
    prefix_of = [prefixes[prompt][sample] for prompt, sample in zip(prompt_of, sample_of)]
    key = [row_key(prompts[prompt], sample) for prompt, sample in zip(prompt_of, sample_of)]
    positions = [len(prompts[prompt]) for prompt in prompt_of]

    def filled(values, value, dtype=np.int32):
        return np.array([*values, *[value] * (count - len(admitted))], dtype)

    return (
        filled(source, 0),
        filled(slot_of, slots),  # out of range, so dropped
        pad([*prefix_of, *[()] * (count - len(admitted))], max_pending, 0),
        filled(map(len, prefix_of), 1),
        filled(positions, 0),
        filled(key, (0, 0), np.uint32),
    )


def _make_text(template: DecodingTemplate, decided, tokens, lengths, probs) -> GeneratedText:
    """The text of a finished row, from the arrays of its slot."""
    slots, choices = [], []
    for choice, ids, length in zip(template.choice.tolist(), tokens.tolist(), lengths.tolist()):
        slots.append(tuple(ids[:length] if choice < 0 else template.alternative(choice, ids[0])))
        choices.append(-1 if choice < 0 else ids[0])
    return GeneratedText(tuple(slots), tuple(choices), probs, int(decided))

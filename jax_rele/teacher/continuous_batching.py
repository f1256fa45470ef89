"""The host's side of decoding: prompts are read in groups, and a finished row's slot goes to the next."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jax_rele.data.tokens.packing import pad
from jax_rele.models import Decoder
from jax_rele.teacher.decoding import Sampling, decode, insert, new_slots
from jax_rele.teacher.kv_cache import (
    SMALLEST,
    WORTH,
    base_cache,
    bucket,
    buckets,
    on,
    prefill,
    row_count,
    row_parts,
    shared_base,
)
from jax_rele.teacher.template import DecodingTemplate

STEP_TOKENS = {"cpu": 64}
"""Tokens over all rows up to which a wider step costs little, by platform."""


@dataclass(frozen=True)
class Written:
    """What was written of one row.

    Attributes:
      slots: for each decision of the program the tokens of its slot.
      choices: for each decision the word that was chosen, -1 for a value.
      probs: [D, K] distributions over the words of each choice; what stands at a value means nothing.
      decided: decisions that the model took, each token of a value and its end counted.
    """

    slots: tuple[tuple[int, ...], ...]
    choices: tuple[int, ...]
    probs: np.ndarray
    decided: int


def row_key(prompt: Sequence[int], sample: int) -> tuple[int, int]:
    """What a row's random numbers depend on, beside the seed and the decision: its text, not its place among others."""
    return zlib.crc32(np.array(prompt, np.int32).tobytes()), sample


def step_width(program: DecodingTemplate, rows: int) -> int:
    """Tokens of a row that one forward pass reads: as many as cost little over all rows."""
    return min(program.longest_run, max(1, STEP_TOKENS.get(jax.default_backend(), 128) // rows))


def generate(
    model: Decoder,
    variables: Any,
    program: DecodingTemplate,
    prompts: Sequence[Sequence[int]],
    leads: Sequence[Sequence[Sequence[int]]],
    *,
    batch_size: int,
    sampling: Sampling,
    mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> tuple[list[list[Written]], int]:
    """Writes rows along a program.

    A row's random numbers depend on the seed, its prompt, its sample and the decision alone; so what is written depends
    neither on the other prompts nor on the slots.

    Args:
      model, variables: the decoder and its parameters.
      program: what to write.
      prompts: token ids, at least one each; every prompt is read once.
      leads: for each prompt and each of its samples the tokens before the first decision, at least one: `program.lead`,
        behind what else is known.
      batch_size: most slots, a multiple of the devices that share the rows.
      sampling: how tokens are drawn.
      mesh: the devices that the variables live on.
      progress: called with the number of rows that were finished.

    Returns:
      For each prompt and each of its samples what was written; and the number of forward passes that decoded.
    """
    written: list[list[Any]] = [[None] * len(samples) for samples in leads]
    total = sum(map(len, written))
    if not total:
        return written, 0
    parts = row_parts(mesh)
    slots = row_count(total, batch_size, parts)
    # Slots are given out so many at a time: few calls, and few slots that wait.
    refill = max(1, slots // 4)
    base = shared_base(prompts)
    together = row_count(-(-refill * len(prompts) // total), slots, parts)
    groups = _groups(prompts, len(base), together, slots)
    lead = max(len(lead) for samples in leads for lead in samples)
    run = max(program.longest_run, lead)
    longest = bucket(len(base)) + max(length for _, length in groups) + lead + program.longest - len(program.lead)
    waiting: deque[tuple[int, int, int]] = deque()  # (row of the group's cache, prompt, sample)
    free = deque(range(slots))
    held: dict[int, tuple[int, int]] = {}  # slot -> (prompt, sample)
    with on(mesh):
        shared = base_cache(model, variables, base, parts)
        state = new_slots(model, variables, program, slots, SMALLEST * -(-longest // SMALLEST), run)
        while True:
            while free and (waiting or groups):
                if not waiting:
                    members, length = groups.popleft()
                    rests = [prompts[prompt][len(base) :] for prompt in members] + [()] * (together - len(members))
                    zeros = np.zeros(together, np.int32)
                    cache = prefill(model, variables, shared, zeros, pad(rests, length, 0), zeros + len(base))
                    waiting.extend(
                        (row, prompt, sample)
                        for row, prompt in enumerate(members)
                        for sample in range(len(leads[prompt]))
                    )
                taken = [(*waiting.popleft(), free.popleft()) for _ in range(min(len(free), len(waiting), refill))]
                state = insert(state, cache, *_admitted(taken, prompts, leads, refill, run, slots))
                held |= {slot: (prompt, sample) for _, prompt, sample, slot in taken}
            if not held:
                return written, int(state.passes)
            state = decode(
                model,
                variables,
                program,
                state,
                slots - refill if waiting or groups else 0,
                width=step_width(program, slots),
                **sampling.arguments,
            )
            found = jax.device_get((state.decision, state.decided, state.written, state.lengths, state.probs))
            finished = [slot for slot in held if found[0][slot] == len(program.is_choice)]
            for slot in finished:
                prompt, sample = held.pop(slot)
                written[prompt][sample] = _take(program, *(array[slot] for array in found[1:]))
            free.extend(finished)
            progress(len(finished))


def _groups(prompts: Sequence[Sequence[int]], base: int, most: int, slots: int) -> deque[tuple[list[int], int]]:
    """(prompts that are read in one call, their padded length behind the base), those of about a length together."""
    lengths = buckets([len(prompt) - base for prompt in prompts], WORTH * slots)
    order = np.argsort(lengths, kind="stable")
    groups: deque[tuple[list[int], int]] = deque()
    for length in np.unique(lengths).tolist():
        members = order[lengths[order] == length].tolist()
        groups.extend((members[start : start + most], length) for start in range(0, len(members), most))
    return groups


def _admitted(taken, prompts, leads, count: int, run: int, slots: int) -> tuple[np.ndarray, ...]:
    """The arguments of `insert` for (row of the cache, prompt, sample, slot) each, filled up to `count`."""
    source, prompt_of, sample_of, slot_of = (np.array(column) for column in zip(*taken))
    lead_of = [leads[prompt][sample] for prompt, sample in zip(prompt_of, sample_of)]
    key = [row_key(prompts[prompt], sample) for prompt, sample in zip(prompt_of, sample_of)]
    positions = [len(prompts[prompt]) for prompt in prompt_of]

    def filled(values, value, dtype=np.int32):
        return np.array([*values, *[value] * (count - len(taken))], dtype)

    return (
        filled(source, 0),
        filled(slot_of, slots),  # outside, so it is left out
        pad([*lead_of, *[()] * (count - len(taken))], run, 0),
        filled(map(len, lead_of), 1),
        filled(positions, 0),
        filled(key, (0, 0), np.uint32),
    )


def _take(program: DecodingTemplate, decided, tokens, lengths, probs) -> Written:
    """One finished row, from the arrays of its slot."""
    slots, choices = [], []
    for is_choice, kept, length in zip(program.is_choice, tokens.tolist(), lengths.tolist()):
        slots.append(tuple(program.word(kept[0]) if is_choice else kept[:length]))
        choices.append(kept[0] if is_choice else -1)
    return Written(tuple(slots), tuple(choices), probs, int(decided))

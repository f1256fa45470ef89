"""Decoding along a program, with a key-value cache: one step decides and reads all text that its decisions force.

Rows stand in slots and are each at a place of their own, so that a finished row's slot can be given to the next.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_rele.models import Decoder
from jax_rele.teacher.kv_cache import cache_length, new_cache, split_cache, split_rows
from jax_rele.teacher.template import DecodingTemplate

_NEVER = -1e30


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class Slots:
    """B rows that are being written. D decisions, W tokens of a value, K words of a choice.

    Attributes:
      cache: the key-value cache, of T positions.
      run: [B, R] int32, the tokens to be read next: what was decided and what it forces.
      run_length: [B] int32.
      read: [B] int32, how many tokens of the run have been read.
      position: [B] int32, of the next token.
      decision: [B] int32, the next decision; D for a row that is finished or was never given.
      count: [B] int32, tokens of the value that is being written.
      decided: [B] int32, decisions so far, a value's tokens and its end counted one by one.
      key: [B, 2] uint32, what the row's random numbers depend on.
      written: [B, D, W] int32, the tokens of a value, or which word was chosen.
      lengths: [B, D] int32, tokens of a value.
      probs: [B, D, K] float32, a choice's distribution, by its words' first tokens.
      passes: int32, forward passes so far.
    """

    cache: Any
    run: jax.Array
    run_length: jax.Array
    read: jax.Array
    position: jax.Array
    decision: jax.Array
    count: jax.Array
    decided: jax.Array
    key: jax.Array
    written: jax.Array
    lengths: jax.Array
    probs: jax.Array
    passes: jax.Array


@dataclass(frozen=True)
class Sampling:
    """How tokens and verdicts are drawn.

    Attributes:
      temperature: logits are divided by it; 0 takes the most likely (greedy).
      top_p: draws are among the fewest tokens whose probabilities sum to at least this (nucleus sampling, Holtzman et
        al., arXiv 1904.09751); 1 for all.
      seed: of the random numbers.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature must not be negative and top_p must lie in (0, 1], got {self}")

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `draw` and `decode`: numbers, which may change without a compile, and flags."""
        return {
            "temperature": np.float32(self.temperature),
            "top_p": np.float32(self.top_p),
            "seed": np.uint32(self.seed % 2**32),
            "greedy": self.temperature == 0,
            "nucleus": self.top_p < 1,
        }


@partial(jax.jit, static_argnames=("model", "rows", "length", "run"))
def new_slots(model: Decoder, variables: Any, program: DecodingTemplate, rows: int, length: int, run: int) -> Slots:
    """Slots without rows, for `length` positions and runs of up to `run` tokens."""
    decisions = len(program.is_choice)

    def zeros(*shape, dtype=jnp.int32):
        return jnp.zeros((rows, *shape), dtype)

    slots = Slots(
        cache=new_cache(model, rows, length),
        run=zeros(run),
        run_length=zeros() + 1,
        read=zeros(),
        position=zeros(),
        decision=zeros() + decisions,
        count=zeros(),
        decided=zeros(),
        key=zeros(2, dtype=jnp.uint32),
        written=zeros(decisions, program.value_length),
        lengths=zeros(decisions),
        probs=zeros(decisions, len(program.words), dtype=jnp.float32),
        passes=jnp.int32(0),
    )
    return _placed(slots)


@partial(jax.jit, donate_argnames=("slots",))
def insert(
    slots: Slots,
    cache: Any,
    source: jax.Array,
    slot: jax.Array,
    run: jax.Array,
    run_length: jax.Array,
    position: jax.Array,
    key: jax.Array,
) -> Slots:
    """Gives slots to rows whose prompts have been read.

    Args:
      slots: all slots.
      cache: of G prompts, with no more positions than that of the slots.
      source: [A] int, the prompt of each row.
      slot: [A] int, the slot of each row; what is outside of the slots is left out.
      run: [A, R] int, the tokens that are read before the first decision, at least one.
      run_length, position: [A] int, tokens of the run and the position of its first.
      key: [A, 2] uint32.
    """
    length = cache_length(cache)

    def put(whole, part):
        return whole.at[slot].set(part, mode="drop")

    return _placed(
        dataclasses.replace(
            slots,
            cache=jax.tree.map(
                lambda whole, part: whole.at[:, slot, :length].set(part[:, source], mode="drop"), slots.cache, cache
            ),
            run=put(slots.run, run),
            run_length=put(slots.run_length, run_length),
            read=put(slots.read, 0),
            position=put(slots.position, position),
            decision=put(slots.decision, 0),
            count=put(slots.count, 0),
            decided=put(slots.decided, 0),
            key=put(slots.key, key),
        )
    )


@partial(jax.jit, static_argnames=("model", "width", "greedy", "nucleus"), donate_argnames=("slots",))
def decode(
    model: Decoder,
    variables: Any,
    program: DecodingTemplate,
    slots: Slots,
    rest: jax.Array,
    *,
    temperature: jax.Array,
    top_p: jax.Array,
    seed: jax.Array,
    width: int,
    greedy: bool,
    nucleus: bool,
) -> Slots:
    """Writes until no more than `rest` rows are unfinished.

    Args:
      model, variables: the decoder and its parameters.
      program: what to write.
      slots: the rows.
      rest: int.
      temperature, top_p, seed: as in `Sampling`.
      width: tokens of a row that a forward pass reads; longer runs take several.
      greedy: whether the most likely is taken; temperature, top_p and seed are then not used.
      nucleus: whether `top_p` is used.
    """
    program = jax.tree.map(jnp.asarray, program)
    decisions = len(program.is_choice)
    decoder = model.clone(cache_length=cache_length(slots.cache))
    rows = jnp.arange(len(slots.decision))
    first = program.words[:, 0]

    def step(slots: Slots) -> Slots:
        # Read the next tokens of every run. What padding writes is hidden until the row's next tokens overwrite it.
        places = slots.read[:, None] + jnp.arange(width)
        tokens = jnp.take_along_axis(slots.run, places, axis=1, mode="clip")
        positions = slots.position[:, None] + jnp.arange(width)
        outputs, changed = decoder.apply({**variables, "cache": slots.cache}, tokens, positions, mutable=["cache"])
        new = jnp.minimum(slots.run_length - slots.read, width)
        hidden = outputs.hidden[rows, new - 1]
        logits = jnp.einsum("be,ve->bv", hidden, outputs.output_embedding, preferred_element_type=jnp.float32)

        # Decide, where a run has been read to its end.
        unfinished = slots.decision < decisions
        ready = unfinished & (slots.read + new >= slots.run_length)
        decision = jnp.minimum(slots.decision, decisions - 1)
        is_choice, tail, tail_length = (
            table[decision] for table in (program.is_choice, program.tails, program.tail_lengths)
        )
        vocabulary = jnp.arange(logits.shape[-1])
        words = (vocabulary[:, None] == first).any(axis=-1)
        # A value has at least one token, so it may end only from the second on.
        may_end = (vocabulary == tail[:, :1]) & (slots.count > 0)[:, None]
        allowed = jnp.where(is_choice[:, None], words, program.value_tokens | may_end)
        token = draw(
            jnp.where(allowed, logits, _NEVER),
            slots.key,
            slots.decided,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            greedy=greedy,
            nucleus=nucleus,
        )
        ends = ~is_choice & (token == tail[:, 0]) & (slots.count > 0)
        choice = jnp.argmax(first == token[:, None], axis=-1)
        count = slots.count + (~is_choice & ~ends)
        leaves = is_choice | ends | (count >= program.value_length)

        # The next run: what was decided, and what is forced behind it where the slot is left.
        head = jnp.where(is_choice[:, None], program.words[choice], token[:, None])
        head_length = jnp.select([is_choice, ends], [program.word_lengths[choice], 0], 1)
        place = jnp.arange(slots.run.shape[1])[None, :]
        run = jnp.where(
            place < head_length[:, None],
            jnp.take_along_axis(head, place, axis=1, mode="clip"),
            jnp.take_along_axis(tail, place - head_length[:, None], axis=1, mode="clip"),
        )

        def put(new_value, old):
            return jnp.where(ready.reshape(-1, *[1] * (old.ndim - 1)), new_value, old)

        # Rows that decide nothing are left as they are.
        row = jnp.where(ready, rows, len(rows))
        kept = jnp.where(is_choice, choice, token)
        place = jnp.where(is_choice, 0, jnp.where(ends, program.value_length, slots.count))
        return _placed(
            dataclasses.replace(
                slots,
                cache=changed["cache"],
                run=put(run, slots.run),
                run_length=put(head_length + jnp.where(leaves, tail_length, 0), slots.run_length),
                read=jnp.where(ready, 0, slots.read + new * unfinished),
                position=slots.position + new * unfinished,
                decision=put(slots.decision + leaves, slots.decision),
                count=put(jnp.where(leaves, 0, count), slots.count),
                decided=slots.decided + ready,
                written=slots.written.at[row, decision, place].set(kept, mode="drop"),
                lengths=slots.lengths.at[row, decision].set(count, mode="drop"),
                probs=slots.probs.at[row, decision].set(jax.nn.softmax(logits[:, first], axis=-1), mode="drop"),
                passes=slots.passes + 1,
            )
        )

    return jax.lax.while_loop(lambda slots: (slots.decision < decisions).sum() > rest, step, slots)


@partial(jax.jit, static_argnames=("greedy", "nucleus"))
def draw(
    logits: jax.Array,
    key: jax.Array,
    decision: jax.Array,
    *,
    temperature: jax.Array,
    top_p: jax.Array,
    seed: jax.Array,
    greedy: bool,
    nucleus: bool,
) -> jax.Array:
    """One of V for each of B rows, from [B, V] logits.

    Random numbers depend on the seed, the row's `key` [B, 2] and the number of its `decision` [B] alone.
    """
    if greedy:
        # The argmax in two reductions, since CPUs take one number at a time where value and place are reduced together.
        last = logits.shape[-1] - 1
        best = logits.max(axis=-1, keepdims=True)
        return jnp.where(logits == best, jnp.arange(last + 1, dtype=jnp.int32), last).min(axis=-1)
    logits = logits / temperature
    if nucleus:
        logits = jnp.where(in_nucleus(logits, top_p), logits, _NEVER)
    root = jax.random.key(seed)

    def one(key, decision, logits):
        rng = reduce(jax.random.fold_in, (key[0], key[1], decision), root)
        return jax.random.categorical(rng, logits)

    return jax.vmap(one)(key, decision, logits).astype(jnp.int32)


def in_nucleus(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """[..., V] logits -> bool: the fewest most likely tokens whose probabilities sum to at least `top_p`."""
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    # The most likely token is always in.
    kept = (before < top_p).at[..., 0].set(True)
    return jnp.put_along_axis(jnp.zeros_like(kept), order, kept, axis=-1, inplace=False)


def _placed(slots: Slots) -> Slots:
    """The slots, on the mesh of the trace as they are everywhere, so that no call compiles anew."""
    placed = split_rows(
        {
            field.name: getattr(slots, field.name)
            for field in dataclasses.fields(slots)
            if field.name not in ("cache", "passes")
        }
    )
    return dataclasses.replace(slots, cache=split_cache(slots.cache), **placed)

"""Guided decoding with a key-value cache: one step decides, then reads all text that the decisions force.

Each row of the batch (a slot) has its own position, so that a waiting row can take over the slot of a finished one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np

from jax_rele.models import Decoder
from jax_rele.teacher.kv_cache import SMALLEST, cache_length, new_cache, put_rows, split_cache, split_rows
from jax_rele.teacher.template import DecodingTemplate
from jax_rele.types import PyTree

_NEVER = -1e30


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class Slots:
    """The state of B rows during decoding, of D decisions, up to W tokens of a value and K alternatives.

    Attributes:
      cache: the key-value cache, of T positions.
      pending_tokens: [B, R] int32, the tokens to read next: those decided and those forced after them.
      pending_lengths: [B] int32.
      read: [B] int32, number of pending tokens that have been read.
      position: [B] int32, of the next token.
      decision: [B] int32, the next decision; D for a finished row or an empty slot.
      count: [B] int32, tokens so far of the current value.
      decided: [B] int32, decisions so far; each token of a value and its end count as one.
      key: [B, 2] uint32, key of the row's random numbers.
      written: [B, D, W] int32, the tokens of a value, or the index of the chosen alternative.
      lengths: [B, D] int32, tokens of a value.
      probs: [B, D, K] float32, distributions over the alternatives of a choice, from their first tokens.
      passes: int32, forward passes so far.
    """

    cache: PyTree
    pending_tokens: jax.Array
    pending_lengths: jax.Array
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
      temperature: divides the logits; 0 selects the most likely token (greedy).
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
    def arguments(self) -> dict[str, PyTree]:
        """The keyword arguments of `draw` and `decode`: numbers, which may change without a compile, and flags."""
        return {
            "temperature": np.float32(self.temperature),
            "top_p": np.float32(self.top_p),
            "seed": np.uint32(self.seed % 2**32),
            "greedy": self.temperature == 0,
            "nucleus": self.top_p < 1,
        }


@partial(jax.jit, static_argnames=("model", "rows", "length", "max_pending"))
def new_slots(
    model: Decoder, variables: PyTree, template: DecodingTemplate, rows: int, length: int, max_pending: int
) -> Slots:
    """Empty slots, for `length` positions and up to `max_pending` pending tokens."""
    decisions = len(template.choice)

    def zeros(*shape, dtype=jnp.int32):
        return jnp.zeros((rows, *shape), dtype)

    slots = Slots(
        cache=new_cache(model, rows, length),
        pending_tokens=zeros(max_pending),
        pending_lengths=zeros() + 1,
        read=zeros(),
        position=zeros(),
        decision=zeros() + decisions,
        count=zeros(),
        decided=zeros(),
        key=zeros(2, dtype=jnp.uint32),
        written=zeros(decisions, template.value_length),
        lengths=zeros(decisions),
        probs=zeros(decisions, template.verbalizers.shape[1], dtype=jnp.float32),
        passes=jnp.int32(0),
    )
    return _constrain(slots)


def cache_reads(length: int) -> tuple[int, ...]:
    """How much of a cache of `length` positions a pass may read: eighths of it, so that few are read in vain."""
    step = SMALLEST * -(-length // (8 * SMALLEST))
    return (*range(step, length, step), length)


@partial(jax.jit, donate_argnames=("slots",))
def insert(
    slots: Slots,
    cache: PyTree,
    source: jax.Array,
    slot: jax.Array,
    pending_tokens: jax.Array,
    pending_lengths: jax.Array,
    position: jax.Array,
    key: jax.Array,
) -> Slots:
    """Inserts rows whose prompts have been prefilled.

    Args:
      slots: all slots.
      cache: the prefilled cache of G prompts, with at most as many positions as the cache of the slots.
      source: [A] int, the prompt of each row.
      slot: [A] int, the slot of each row; rows whose slot is out of range are dropped.
      pending_tokens: [A, R] int, the tokens before the first decision, at least one.
      pending_lengths, position: [A] int, number of pending tokens and the position of the first.
      key: [A, 2] uint32.
    """

    def put(whole, part):
        return whole.at[slot].set(part, mode="drop")

    return _constrain(
        dataclasses.replace(
            slots,
            cache=put_rows(slots.cache, cache, source, slot),
            pending_tokens=put(slots.pending_tokens, pending_tokens),
            pending_lengths=put(slots.pending_lengths, pending_lengths),
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
    variables: PyTree,
    template: DecodingTemplate,
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
    """Decodes until at most `rest` rows are unfinished.

    Args:
      model, variables: the decoder and its parameters.
      template: the template that is followed.
      slots: the state of the rows.
      rest: int.
      temperature, top_p, seed: as in `Sampling`.
      width: tokens of each row that a forward pass reads; more pending tokens take several passes.
      greedy: whether to select the most likely token; temperature, top_p and seed are then unused.
      nucleus: whether `top_p` is used.
    """
    template = jax.tree.map(jnp.asarray, template)
    decisions = len(template.choice)
    length = cache_length(slots.cache)
    decoder = model.clone(cache_length=length, cache_reads=cache_reads(length))
    rows = jnp.arange(len(slots.decision))
    first_tokens = template.verbalizers[:, :, 0]
    vocabulary = jnp.arange(model.config.vocab_size)
    choice_tokens = (vocabulary == first_tokens[..., None]).any(axis=1)

    def step(slots: Slots) -> Slots:
        # Read the next pending tokens. Cache entries of padding stay masked until the row's next tokens overwrite them.
        indices = slots.read[:, None] + jnp.arange(width)
        tokens = jnp.take_along_axis(slots.pending_tokens, indices, axis=1, mode="clip")
        unfinished = slots.decision < decisions
        # A finished row needs no more than its first positions, so it does not decide how much of the cache is read.
        positions = jnp.where(unfinished, slots.position, 0)[:, None] + jnp.arange(width)
        outputs, changed = decoder.apply({**variables, "cache": slots.cache}, tokens, positions, mutable=["cache"])
        new = jnp.minimum(slots.pending_lengths - slots.read, width)
        hidden = outputs.hidden[rows, new - 1]
        logits = jnp.einsum("be,ve->bv", hidden, outputs.output_embedding, preferred_element_type=jnp.float32)

        # Decide in the rows whose pending tokens have all been read.
        ready = unfinished & (slots.read + new >= slots.pending_lengths)
        decision = jnp.minimum(slots.decision, decisions - 1)
        choice_set, suffix, suffix_length = (
            table[decision] for table in (template.choice, template.forced_suffixes, template.suffix_lengths)
        )
        is_choice, first = choice_set >= 0, first_tokens[choice_set]
        # A value has at least one token, so it cannot end at its first.
        may_end = (vocabulary == suffix[:, :1]) & (slots.count > 0)[:, None]
        allowed = jnp.where(is_choice[:, None], choice_tokens[choice_set], template.value_tokens | may_end)
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
        ends = ~is_choice & (token == suffix[:, 0]) & (slots.count > 0)
        choice = jnp.argmax(first == token[:, None], axis=-1)
        first_logits = jnp.take_along_axis(logits, jnp.maximum(first, 0), axis=-1)
        count = slots.count + (~is_choice & ~ends)
        leaves = is_choice | ends | (count >= template.value_length)

        # The next pending tokens: those decided, then the forced suffix where the slot is complete.
        head = jnp.where(is_choice[:, None], template.verbalizers[choice_set, choice], token[:, None])
        head_length = jnp.select([is_choice, ends], [template.verbalizer_lengths[choice_set, choice], 0], 1)
        index = jnp.arange(slots.pending_tokens.shape[1])[None, :]
        pending_tokens = jnp.where(
            index < head_length[:, None],
            jnp.take_along_axis(head, index, axis=1, mode="clip"),
            jnp.take_along_axis(suffix, index - head_length[:, None], axis=1, mode="clip"),
        )

        def put(new_value, old):
            return jnp.where(ready.reshape(-1, *[1] * (old.ndim - 1)), new_value, old)

        # Rows that have not decided get an index out of range, which leaves them unchanged.
        row = jnp.where(ready, rows, len(rows))
        new_token = jnp.where(is_choice, choice, token)
        column = jnp.where(is_choice, 0, jnp.where(ends, template.value_length, slots.count))
        return _constrain(
            dataclasses.replace(
                slots,
                cache=changed["cache"],
                pending_tokens=put(pending_tokens, slots.pending_tokens),
                pending_lengths=put(head_length + jnp.where(leaves, suffix_length, 0), slots.pending_lengths),
                read=jnp.where(ready, 0, slots.read + new * unfinished),
                position=slots.position + new * unfinished,
                decision=put(slots.decision + leaves, slots.decision),
                count=put(jnp.where(leaves, 0, count), slots.count),
                decided=slots.decided + ready,
                written=slots.written.at[row, decision, column].set(new_token, mode="drop"),
                lengths=slots.lengths.at[row, decision].set(count, mode="drop"),
                probs=slots.probs.at[row, decision].set(
                    jax.nn.softmax(jnp.where(first >= 0, first_logits, _NEVER), axis=-1), mode="drop"
                ),
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
    """Draws one of V tokens for each of B rows, from [B, V] logits.

    Random numbers depend only on the seed, the row's `key` [B, 2] and the number of its `decision` [B].
    """
    if greedy:
        # The argmax in two reductions: CPUs do not vectorise a joint reduction of value and index.
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
    # The most likely token is always included.
    selected = (before < top_p).at[..., 0].set(True)
    return jnp.put_along_axis(jnp.zeros_like(selected), order, selected, axis=-1, inplace=False)


def _constrain(slots: Slots) -> Slots:
    """The slots with the same sharding in every call, which avoids recompilation."""
    arrays = split_rows(
        {
            field.name: getattr(slots, field.name)
            for field in dataclasses.fields(slots)
            if field.name not in ("cache", "passes")
        }
    )
    return dataclasses.replace(slots, cache=split_cache(slots.cache), **arrays)

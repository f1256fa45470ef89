"""adapt: train the base on catalogue text and on rule rationales of pairs that cost nothing to make."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jax_rele import losses
from jax_rele.config import Config
from jax_rele.data import candidates, recombine
from jax_rele.data.batches.loader import batches, rows, shuffled
from jax_rele.data.tokens.prompts import Answer, AnswerEncoder, encode_prompts, language_rows
from jax_rele.errors import UserError
from jax_rele.models.weights import load_params
from jax_rele.rationale import RuleAnnotator
from jax_rele.runs import artefacts
from jax_rele.training import (
    distributed,
    init_state,
    local_row_indices,
    make_mesh,
    make_optimizer,
    make_train_step,
    shard_step,
    train,
)
from jax_rele.training.checkpoint import clear, save_variables
from jax_rele.types import Pair

CHUNK = 512
"""Positions of a device whose logits exist at a time."""


def language_term(mesh: jax.sharding.Mesh):
    """Next-token cross-entropy; the rows carry each token's weight."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    return losses.term(losses.next_token_cross_entropy, chunk_size=CHUNK * devices)


def language_loss(mesh: jax.sharding.Mesh):
    """The objective of `adapt` and `finetune`."""
    return losses.combine(tokens=language_term(mesh))


def check_packing(
    pairs: Sequence[Pair], prompts: Sequence[Sequence[int]], answers: Sequence[Answer], pack_to: int, field: str
) -> None:
    """Raises UserError where an example is longer than a packed row; nothing is cut."""
    sizes = [len(prompt) + len(answer.ids) - 1 for prompt, answer in zip(prompts, answers)]
    longest = max(sizes, default=0)
    if 0 < pack_to < longest:
        name = pairs[sizes.index(longest)].pair_id
        raise UserError(
            f"{field}: prompt and rationale of the pair {name!r} take {longest} tokens, a row has {pack_to}; make it "
            f"{longest} or more, or 0 for one example a row"
        )


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Trains and writes the base; does nothing where the base is to be used as it is."""
    adapt, optimization = config.adapt, config.adapt.optimization
    if not adapt.enabled:
        return {"steps": 0, "base": config.teacher.init}
    model, tokenizer = artefacts.teacher_model(config, run_dir)
    pairs = artefacts.load_pairs(run_dir, "train")
    annotator = RuleAnnotator.fit(pairs, config.rationale.dimensions, config.rationale.tag_map)
    options = config.data.candidates
    crossed = candidates(
        pairs,
        [pair.item for pair in pairs],
        adapt.crossed_per_query,
        # Other random items than the pairs that the teacher will score.
        config.seed + 1,
        bm25=options.bm25,
        same_category=options.same_category,
        same_brand=options.same_brand,
    )
    crossed += recombine(pairs, adapt.recombined_pairs, config.seed)
    # These pairs have no label, so the comparisons follow the prompt at once, whatever the order.
    encoder = AnswerEncoder(tokenizer, "rationale_first", config.teacher.value_length)
    teacher = config.teacher
    prompts = encode_prompts(tokenizer, crossed, config.data.item_fields, teacher.prompt_length, teacher.instructions)
    answers = [encoder(rationale) for rationale in annotator.annotate(crossed)]
    check_packing(crossed, prompts, answers, adapt.pack_to, "adapt.pack_to")
    arrays = language_rows(
        prompts,
        answers,
        tokenizer.pad_token_id,
        adapt.pack_to,
        prompt_weight=adapt.text_weight,
        kind_weights={"verdict": adapt.verdict_weight},
    )
    counts = {"pairs": len(crossed), "rows": len(arrays["targets"]), "steps": optimization.steps}
    if distributed.on_main((run_dir / artefacts.BASE).exists):
        return counts  # an earlier attempt ended between writing the base and saying so

    # What learns is kept in float32, whatever the precision of the activations; later stages load it in theirs.
    model = model.clone(config=dataclasses.replace(model.config, param_dtype=jnp.float32))
    mesh, tx = make_mesh(config.mesh), make_optimizer(optimization)
    state = init_state(artefacts.init_decoder(model), "params", {}, tx, mesh, config.seed)
    if teacher.init != "random":
        state = dataclasses.replace(state, trainable={})  # gives the random weights' memory up first
        params = load_params(artefacts.base_folder(config), model.config, mesh)
        state = dataclasses.replace(state, trainable={"params": params})
    step = make_train_step(model.apply, language_loss(mesh), tx, micro_batches=optimization.micro_batches)
    directory = run_dir / "adapt"
    state = train(
        shard_step(step, mesh, state),
        state,
        batches(
            rows(arrays),
            shuffled(len(arrays["targets"]), optimization.batch_size, config.seed),
            local_row_indices(mesh, optimization.batch_size),
        ),
        config=optimization,
        mesh=mesh,
        directory=directory,
        title="adapt",
    )
    save_variables(run_dir / artefacts.BASE, state.trainable)
    clear(directory / "checkpoints")
    return counts

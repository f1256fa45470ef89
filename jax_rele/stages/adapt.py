"""adapt: train the base on catalogue text and on rule rationales of pairs that cost nothing to make."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp

from jax_rele.config import Config
from jax_rele.data import candidates, recombine
from jax_rele.data.tokens.prompts import AnswerEncoder, encode_prompts, language_rows
from jax_rele.models.decoder import init_decoder
from jax_rele.models.weights import load_params, weights_folder
from jax_rele.rationale import RuleAnnotator
from jax_rele.runs import layout
from jax_rele.runs.load import teacher_model
from jax_rele.runs.questions import teacher_question
from jax_rele.teacher.language_model import check_packing, train_language_model
from jax_rele.training import distributed, init_state, make_mesh, make_optimizer
from jax_rele.training.checkpoint import clear, save_variables


def run(config: Config, run_dir: Path) -> Mapping[str, object]:
    """Trains and writes the base; does nothing where the base is to be used as it is."""
    adapt, optimization = config.adapt, config.adapt.optimization
    if not adapt.enabled:
        return {"steps": 0, "base": config.teacher.init}
    model, tokenizer = teacher_model(config, run_dir)
    pairs = layout.load_pairs(run_dir, "train")
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
    teacher, question = config.teacher, teacher_question(config, tokenizer)
    encoder = AnswerEncoder(tokenizer, "rationale_first", teacher.value_length, chat=question.chat)
    prompts = encode_prompts(tokenizer, crossed, config.data.item_fields, teacher.prompt_length, *question)
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
    if distributed.on_main((run_dir / layout.BASE).exists):
        return counts  # an earlier attempt ended after the base was written and before its manifest was

    # What learns is kept in float32, whatever the precision of the activations; later stages load it in theirs.
    model = model.clone(config=dataclasses.replace(model.config, param_dtype=jnp.float32))
    mesh, tx = make_mesh(config.mesh), make_optimizer(optimization)
    state = init_state(init_decoder(model), "params", {}, tx, mesh, config.seed)
    if teacher.init != "random":
        state = dataclasses.replace(state, trainable={})  # frees the random weights' memory first
        params = load_params(weights_folder(teacher.init), model.config, mesh)
        state = dataclasses.replace(state, trainable={"params": params})
    directory = run_dir / "adapt"
    state = train_language_model(
        model,
        state,
        arrays,
        optimization=optimization,
        mesh=mesh,
        seed=config.seed,
        directory=directory,
        title="adapt",
    )
    save_variables(run_dir / layout.BASE, state.trainable)
    clear(directory / "checkpoints")
    return counts

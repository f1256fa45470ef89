"""adapt: the teacher's tokenizer, and its base trained on catalogue text and rule rationales that cost nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.config import Config
from jax_rele.data import PairTable, candidates, recombine
from jax_rele.data.tokens.prompts import AnswerEncoder, encode_prompts, language_rows
from jax_rele.data.tokens.text_loss import summarize
from jax_rele.data.tokens.tokenizers import DECODER_TOKENS, load_tokenizer, sample_pairs, train_tokenizer
from jax_rele.io import atomic_folder, write_error
from jax_rele.models.decoder import init_decoder
from jax_rele.models.weights import load_params, weights_folder
from jax_rele.names import Order
from jax_rele.rationale import RuleAnnotator, grammar, render
from jax_rele.runs import layout
from jax_rele.runs.load import teacher_inputs, teacher_model
from jax_rele.runs.questions import teacher_question
from jax_rele.runs.texts import check_teacher_texts
from jax_rele.teacher import check_verbalizers
from jax_rele.teacher.language_model import check_packing, train_language_model
from jax_rele.training import distributed, init_state, make_mesh, make_optimizer
from jax_rele.training.checkpoint import clear, save_variables
from jax_rele.types import VERDICTS, Comparison, Rationale


def external_inputs(config: Config) -> dict[str, str]:
    """A hash of the weights that the teacher starts from, and of their tokenizer."""
    return teacher_inputs(config)


def run(config: Config, run_dir: Path) -> Mapping[str, object]:
    """Writes the tokenizer; trains and writes the base, save where it is to be used as it is."""
    adapt, optimization = config.adapt, config.adapt.optimization
    distributed.on_main(partial(make_tokenizer, config, run_dir))
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
    order: Order = "rationale_first"
    teacher, question = config.teacher, teacher_question(config, tokenizer, order)
    encoder = AnswerEncoder(tokenizer, order, teacher.value_length, chat=question.chat)
    losses: list[np.ndarray] = []
    prompts = encode_prompts(tokenizer, crossed, config.data.item_fields, teacher.prompt_length, *question, losses)
    loss = summarize(losses)
    distributed.on_main(partial(check_teacher_texts, config, "adapt", loss))
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
    counts = {"pairs": len(crossed), "rows": len(arrays["targets"]), "steps": optimization.steps, **loss.counts()}
    if distributed.on_main((run_dir / layout.BASE).exists):
        clear(run_dir / "adapt" / "checkpoints")
        return counts  # an earlier attempt ended after the base was written and before its manifest was

    # What learns is kept in float32, whatever the precision of the activations; later stages load it in theirs.
    model = model.clone(config=dataclasses.replace(model.config, param_dtype=jnp.float32))
    mesh, tx = make_mesh(config.mesh), make_optimizer(optimization)
    state = init_state(init_decoder(model), "params", {}, tx, mesh, config.seed)
    if teacher.init != "random":
        state = dataclasses.replace(state, trainable={})  # frees the random weights' memory first
        params = load_params(weights_folder(teacher.init, "teacher.init"), model.config, mesh)
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


def make_tokenizer(config: Config, run_dir: Path) -> None:
    """Writes the teacher's tokenizer: trained on the run's pairs, or that of the weights that it starts from."""
    folder = run_dir / layout.TEACHER_TOKENIZER
    if folder.is_dir():
        return
    if config.teacher.init == "random":
        pairs = PairTable(run_dir / layout.PAIRS)
        train = sample_pairs(pairs.select(np.array([split == "train" for split in pairs.column("split").to_pylist()])))
        prompts = (grammar.prompt(pair, config.data.item_fields) for pair in train)
        texts = chain(prompts, _grammar_texts(config, len(train)))
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(texts, config.teacher.random.vocab_size)
    else:
        tokenizer = load_tokenizer(weights_folder(config.teacher.init, "teacher.init"), DECODER_TOKENS)
    check_verbalizers(tokenizer, config.labels.names)
    try:
        with atomic_folder(folder) as new_folder:
            tokenizer.save_pretrained(new_folder)
    except OSError as error:
        raise write_error(folder, error) from None


def _grammar_texts(config: Config, count: int) -> list[str]:
    """Rationales without values, often enough that the grammar's own words become tokens of their own."""
    dimensions, labels = config.rationale.dimensions, config.labels.names
    texts = [
        render(Rationale(tuple(Comparison(dimension, verdict=verdict) for dimension in dimensions), label))
        for verdict in VERDICTS
        for label in labels
    ]
    return texts * max(1, -(-2 * count // len(texts)))

"""adapt: train the base on catalogue text and on rule rationales of pairs that cost nothing to make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jax_rele import losses
from jax_rele.config import Config
from jax_rele.data import cross, recombine
from jax_rele.data.encoding import AnswerEncoder, encode_prompts, language_rows
from jax_rele.data.loader import batches
from jax_rele.rationale import RuleAnnotator
from jax_rele.stages import artefacts
from jax_rele.training import init_state, make_mesh, make_optimizer, make_train_step, shard_step, train
from jax_rele.training.checkpoint import clear, save_variables

NEEDS = ("prepare", "annotate")
READS = ("seed", "data", "rationale", "teacher", "adapt")


def language_loss():
    """Next-token cross-entropy; the rows carry each token's weight."""
    return losses.combine(tokens=losses.term(losses.next_token_cross_entropy))


def row_length(prompts, answers) -> int:
    """The longest row, rounded up to a multiple of 8."""
    return -(-max(len(prompt) + len(answer.ids) for prompt, answer in zip(prompts, answers)) // 8) * 8


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Trains and writes the base."""
    model, tokenizer = artefacts.teacher_model(config, run_dir)
    pairs = artefacts.load_pairs(run_dir, "train")
    annotator = RuleAnnotator.fit(pairs, config.rationale.dimensions, config.rationale.tag_map)
    crossed = cross(
        pairs,
        [pair.item for pair in pairs],
        config.adapt.crossed_per_query,
        # Other random items than the pairs that the teacher will score.
        config.seed + 1,
        lexical_share=config.data.crossed_lexical_share,
    )
    crossed += recombine(pairs, config.adapt.recombined_pairs, config.seed)
    # These pairs have no label, so the comparisons follow the prompt at once, whatever the order.
    encoder = AnswerEncoder(tokenizer, "rationale_first", config.teacher.value_length)
    prompts = encode_prompts(tokenizer, crossed, config.data.item_fields, config.teacher.prompt_length)
    answers = [encoder(rationale) for rationale in annotator.annotate(crossed)]
    rows = language_rows(
        prompts,
        answers,
        row_length(prompts, answers),
        tokenizer.pad_token_id,
        prompt_weight=config.adapt.text_weight,
        kind_weights={"verdict": config.adapt.verdict_weight},
    )
    counts = {"pairs": len(crossed), "steps": config.adapt.optimization.steps}
    if (run_dir / artefacts.BASE).exists():
        return counts  # an earlier attempt ended between writing the base and saying so

    optimization = config.adapt.optimization
    data = batches({"inputs": {"tokens": rows.pop("tokens")}, **rows}, optimization.batch_size, config.seed)

    mesh, tx = make_mesh(config.mesh), make_optimizer(optimization)
    state = init_state(artefacts.init_decoder(model), "params", {}, tx, mesh, config.seed)
    step = shard_step(make_train_step(model.apply, language_loss(), tx, seed=config.seed), mesh, state)
    directory = run_dir / "adapt"
    state = train(step, state, data, config=optimization, mesh=mesh, directory=directory, title="adapt")
    save_variables(run_dir / artefacts.BASE, state.trainable)
    clear(directory / "checkpoints")
    return counts

"""finetune: LoRA on the rationales of the labelled pairs, over the frozen base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jax_rele.config import Config
from jax_rele.data.encoding import AnswerEncoder, encode_prompts, language_rows
from jax_rele.data.loader import batches
from jax_rele.errors import UserError
from jax_rele.stages import artefacts
from jax_rele.stages.adapt import language_loss, row_length
from jax_rele.training import init_state, make_mesh, make_optimizer, make_train_step, shard_step, train
from jax_rele.training.checkpoint import clear, save_variables

NEEDS = ("prepare", "annotate", "adapt")
READS = ("seed", "labels", "data", "rationale", "teacher", "finetune")


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Trains and writes the adapters; the loss is on the completion only."""
    model, tokenizer = artefacts.teacher_model(config, run_dir)
    pairs = artefacts.load_pairs(run_dir, "train")
    counts = {"pairs": len(pairs), "steps": config.finetune.optimization.steps}
    if (run_dir / artefacts.LORA).exists():
        return counts  # an earlier attempt ended between writing the adapters and saying so
    rationales = artefacts.load_rationales(run_dir)
    missing = [pair.pair_id for pair in pairs if pair.pair_id not in rationales]
    if missing:
        path = run_dir / artefacts.RATIONALES
        raise UserError(f"{path}: no rationale for pair {missing[0]!r}; delete the folder {path.parent} and run again")
    encoder = AnswerEncoder(tokenizer, config.teacher.order, config.teacher.value_length)
    prompts = encode_prompts(tokenizer, pairs, config.data.item_fields, config.teacher.prompt_length)
    answers = [encoder(rationales[pair.pair_id]) for pair in pairs]
    rows = language_rows(
        prompts,
        answers,
        row_length(prompts, answers),
        tokenizer.pad_token_id,
        kind_weights={"label": config.finetune.label_weight},
    )
    optimization = config.finetune.optimization
    data = batches({"inputs": {"tokens": rows.pop("tokens")}, **rows}, optimization.batch_size, config.seed)

    mesh, tx = make_mesh(config.mesh), make_optimizer(optimization)
    base = artefacts.load_base(model, run_dir, mesh)
    state = init_state(artefacts.init_decoder(model), "lora", base, tx, mesh, config.seed)
    step = shard_step(make_train_step(model.apply, language_loss(), tx, seed=config.seed), mesh, state)
    directory = run_dir / "finetune"
    state = train(step, state, data, config=optimization, mesh=mesh, directory=directory, title="finetune")
    save_variables(run_dir / artefacts.LORA, state.trainable)
    clear(directory / "checkpoints")
    return counts

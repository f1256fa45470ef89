"""finetune: LoRA on the rationales of the labelled pairs, over the frozen base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele import losses
from jax_rele.config import Config
from jax_rele.data import PairTable
from jax_rele.data.tokens.prompts import Answer, AnswerEncoder, encode_prompts, language_rows
from jax_rele.data.tokens.text_loss import summarize
from jax_rele.errors import UserError
from jax_rele.models import Decoder
from jax_rele.models.decoder import init_decoder
from jax_rele.runs import layout, selected_pairs
from jax_rele.runs.load import load_base, teacher_inputs, teacher_model
from jax_rele.runs.questions import kinds_of_answer, teacher_question
from jax_rele.runs.texts import check_teacher_texts
from jax_rele.teacher import make_verbalizers
from jax_rele.teacher.language_model import check_packing, language_term, train_language_model
from jax_rele.training import TrainState, distributed, init_state, make_evaluate, make_mesh, make_optimizer
from jax_rele.training.checkpoint import clear, save_variables
from jax_rele.types import Pair


def external_inputs(config: Config) -> dict[str, str]:
    """Hashes of the weights that the teacher starts from, and of the files of `finetune.selection`."""
    return {**teacher_inputs(config), **selected_pairs.external_inputs(config)}


def run(config: Config, run_dir: Path) -> Mapping[str, object]:
    """Trains and writes the adapters; the loss is on the completion only."""
    finetune, optimization = config.finetune, config.finetune.optimization
    model, tokenizer = teacher_model(config, run_dir)
    pairs, left_out = layout.load_pairs(run_dir, "train"), {}
    if selected_pairs.files(config):
        selection = distributed.on_main(partial(selected_pairs.select, config, run_dir))
        pairs, left_out = [pairs[row] for row in selection["rows"]], selection["counts"]
    if config.annotate.unlabelled:
        pairs += PairTable(run_dir / layout.UNLABELLED)
    losses: list[np.ndarray] = []
    pairs, prompts, answers = encode(config, run_dir, tokenizer, pairs, losses)
    loss = summarize(losses)
    distributed.on_main(partial(check_teacher_texts, config, "finetune", loss))
    check_packing(pairs, prompts, answers, finetune.pack_to, "finetune.pack_to")
    arrays = language_rows(
        prompts,
        answers,
        tokenizer.pad_token_id,
        finetune.pack_to,
        kind_weights={"label": finetune.label_weight},
    )
    distinct = len(pairs) // (1 + len(config.teacher.perspectives))
    counts = {"pairs": distinct, **left_out, "rows": len(arrays["targets"]), "steps": optimization.steps}
    counts |= loss.counts()
    if distributed.on_main((run_dir / layout.LORA).exists):
        clear(run_dir / "finetune" / "checkpoints")
        return counts  # an earlier attempt ended after the adapters were written and before the manifest was

    mesh, tx = make_mesh(config.mesh), make_optimizer(optimization)
    base = load_base(config, model, run_dir, mesh)
    directory = run_dir / "finetune"
    state = train_language_model(
        model,
        init_state(init_decoder(model), "lora", base, tx, mesh, config.seed),
        arrays,
        optimization=optimization,
        mesh=mesh,
        seed=config.seed,
        directory=directory,
        title="finetune",
        evaluate=held_out(config, run_dir, model, tokenizer, mesh) if finetune.evaluate_every else None,
        evaluate_every=finetune.evaluate_every,
    )
    save_variables(run_dir / layout.LORA, state.trainable)
    clear(directory / "checkpoints")
    return counts


def encode(
    config: Config,
    run_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    losses: list[np.ndarray] | None = None,
) -> tuple[list[Pair], list[list[int]], list[Answer]]:
    """The pairs with a rationale that has a label, their prompts, and the answers that the teacher is to write.

    All pairs come once with the answer over all dimensions, and then once for each of `teacher.perspectives`. What of
    the texts is lost is appended to `losses`.

    Raises:
      UserError: there is none; or rules, which explain every labelled pair, have none for one.
    """
    rationales, path = layout.load_rationales(run_dir), run_dir / layout.RATIONALES
    missing = [pair.pair_id for pair in pairs if pair.label is not None and pair.pair_id not in rationales]
    if config.annotate.annotator == "rules" and missing:
        raise UserError(f"{path}: no rationale for pair {missing[0]!r}; delete the folder {path.parent} and run again")
    everyone = pairs
    pairs = [pair for pair in everyone if pair.pair_id in rationales and rationales[pair.pair_id].label is not None]
    if everyone and not pairs:
        raise UserError(f"{path}: no rationale was accepted for these pairs; {path.parent / 'report.html'} says why")
    teacher = config.teacher
    question = teacher_question(config, tokenizer)
    encoder = AnswerEncoder(tokenizer, teacher.order, teacher.value_length, chat=question.chat)
    prompts = encode_prompts(tokenizer, pairs, config.data.item_fields, teacher.prompt_length, *question, losses)
    answers = [encoder(rationales[pair.pair_id]) for pair in pairs]
    further = kinds_of_answer(config, question.chat)[1:]
    for one in further:
        encoder = AnswerEncoder(tokenizer, one.order, teacher.value_length, chat=question.chat)
        asked = config.data.item_fields, teacher.prompt_length, one.instructions, question.chat
        prompts += encode_prompts(tokenizer, pairs, *asked)
        answers += [encoder(one.answer(rationales[pair.pair_id])) for pair in pairs]
    return pairs * (1 + len(further)), prompts, answers


def label_hits(
    hidden: jax.Array,
    output_embedding: jax.Array,
    label_positions: jax.Array,
    labels: jax.Array,
    label_tokens: jax.Array,
) -> jax.Array:
    """Whether a row's label is the likeliest of the label words, given the text before it.

    Args:
      hidden: [B, L, E].
      output_embedding: [vocabulary, E].
      label_positions: [B] int, where the hidden state is that the label is read from.
      labels: [B] int.
      label_tokens: [C] int, the token that distinguishes each label from the others.

    Returns:
      [B] float32, 0 or 1.
    """
    last = jnp.take_along_axis(hidden, label_positions[:, None, None], axis=1)[:, 0]
    logits = jnp.einsum("be,ce->bc", last, output_embedding[label_tokens], preferred_element_type=jnp.float32)
    return (logits.argmax(axis=-1) == labels).astype(jnp.float32)


def held_out(
    config: Config, run_dir: Path, model: Decoder, tokenizer: PreTrainedTokenizerBase, mesh: jax.sharding.Mesh
) -> Callable[[TrainState], dict[str, float]]:
    """Measures a state on the validation split: `loss`, weighted as in training, and `label_accuracy`.

    The label is chosen after the annotator's text, which with `rationale_first` is its whole rationale. With
    `teacher.perspectives` both are over the answers of all kinds. There is no accuracy where the labels' verbalizers
    differ in no single token.
    """
    pairs = layout.load_pairs(run_dir, "validation")
    pairs, prompts, answers = encode(config, run_dir, tokenizer, pairs)
    kind_weights = {"label": config.finetune.label_weight}
    validation_rows = language_rows(prompts, answers, tokenizer.pad_token_id, kind_weights=kind_weights)
    terms = {"loss": language_term(mesh)}
    verbalizers = make_verbalizers(tokenizer, config.labels.names)
    if verbalizers.scoring == "first_token":
        starts = [len(prompt) + answer.kinds.index("label") for prompt, answer in zip(prompts, answers)]
        names = config.labels.names
        validation_rows |= {
            "label_positions": np.array(starts, np.int32) + len(verbalizers.common) - 1,
            "labels": np.array([names.index(pair.label) for pair in pairs], np.int32),
        }
        terms["label_accuracy"] = losses.term(
            label_hits, label_tokens=np.array([rest[0] for rest in verbalizers.rests])
        )
    optimization = config.finetune.optimization
    batch_size = optimization.batch_size // optimization.micro_batches
    return make_evaluate(model.apply, losses.combine(**terms), validation_rows, batch_size, mesh)

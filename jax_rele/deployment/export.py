"""`jax-rele export RUN --model cross_encoder|two_tower`: a trained student in a form that other programs load.

A format is a function that fills an empty folder and returns what it computes for the sample. Whatever cannot be exact
in a format is refused. The folder appears whole, after its outputs were compared with the student in JAX, or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
import onnx
from scipy.special import softmax

from jax_rele.data.tokens.student_inputs import pair_markers
from jax_rele.deployment import refusals
from jax_rele.deployment.bundle import MANIFEST, Manifest, read_manifest, write_manifest
from jax_rele.deployment.card import model_card
from jax_rele.deployment.engines import vespa_note, write_triton_config
from jax_rele.deployment.int8 import PRESETS, Gate, check_gate, quantise
from jax_rele.deployment.parity import check_parity, compare_outputs
from jax_rele.deployment.scorer import Scorer, load_bundle
from jax_rele.deployment.student_data import StudentData, load_student_data, sample_pairs
from jax_rele.deployment.student_graph import compare_model, cross_encoder_model, log_odds, tower_model
from jax_rele.errors import UserError
from jax_rele.io import atomic_folder, disk_is_full, write_error, write_json
from jax_rele.models.encoder_families import encoder_hf_config
from jax_rele.names import FORMATS
from jax_rele.students.base import padded_inputs
from jax_rele.students.cross_encoder import CrossEncoder
from jax_rele.students.two_tower import TwoTower
from jax_rele.types import Pair, StudentOutputs

PARITY = "parity.json"
LABEL_LOGITS = "label_logits"
BATCH = 20
"""Rows that the student in JAX judges at a time."""


@dataclass(frozen=True)
class Written:
    """What a format wrote.

    Attributes:
      outputs: what the exported form computes for the sample, by name, among them `scores_by`.
      scores_by: the output that orders pairs.
      usage: lines of code that load it.
      notes: sentences for the card.
      gate: the 8-bit graphs against the float32 ones, where there are such.
    """

    outputs: Mapping[str, np.ndarray]
    scores_by: str
    usage: tuple[str, ...]
    notes: tuple[str, ...] = ()
    gate: Gate | None = None


def export_student(
    run_dir: str | Path,
    output: str | Path,
    model: str,
    *,
    recipe: str | None = None,
    form: str = "onnx",
    labels: bool = False,
    int8: str = "",
) -> Mapping[str, object]:
    """Writes a student of a run for other programs.

    Args:
      run_dir: folder of a run that is evaluated.
      output: folder to write; it must not exist or be empty.
      model: `cross_encoder` or `two_tower`.
      recipe: which of the run's recipes; by default `mkd`, or the last one that the run trained.
      form: `onnx`, a bundle that `jax_rele` serves and any engine runs; `sentence-transformers`; `tei`, for
        text-embeddings-inference; `stablehlo`, for `jax.export`; or `hf`, for transformers' AutoModel.
      labels: with `sentence-transformers`, a cross-encoder that gives label logits instead of one score.
      int8: with `onnx`, a preset of 8-bit weights: `any`, or `vnni` for x86 processors with VNNI.

    Returns:
      What `parity.json` holds.

    Raises:
      UserError: an unknown format, student or recipe, an unfinished run; what the format cannot express exactly; a form
        that differs from JAX; 8-bit weights that change the results too much.
    """
    if form not in FORMATS:
        raise UserError(f"--format: there is no {form!r}; there are {', '.join(FORMATS)}")
    if int8 and (form != "onnx" or int8 not in PRESETS):
        raise UserError(f"--int8: is for --format onnx, and one of {', '.join(PRESETS)}")
    if labels and (form != "sentence-transformers" or model != "cross_encoder"):
        raise UserError("--labels: is for a cross_encoder in the format sentence-transformers")
    run_dir, output = Path(run_dir), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists and is not an empty folder; give a new folder")
    data = load_student_data(run_dir, model, recipe)
    refusals.check(data, form)
    pairs = sample_pairs(data)
    try:
        with atomic_folder(output) as folder:
            written = _writers(labels, int8)[form](data, folder, pairs)
            parity = compare_outputs(written.outputs, _expected(data, pairs, written.outputs), written.scores_by)
            if written.gate is None:
                check_parity(parity, str(output))
            else:
                parity["int8"] = written.gate.figures
                check_gate(written.gate, str(output))
            write_json(folder / PARITY, parity)
            manifest = data.manifest.model_copy(update={"int8": int8})
            notes = [*written.notes, *(written.gate.sentences if written.gate else ())]
            card = model_card(data, manifest, form, written.usage, parity, notes)
            (folder / "README.md").write_text(card, "utf-8")
            if form == "onnx":
                write_manifest(folder, manifest)
                read_manifest(folder)
    except UserError:
        raise
    except Exception as error:
        # What is written by libraries in other languages raises errors of theirs.
        if isinstance(error, OSError) or disk_is_full(error):
            raise write_error(output, error) from error
        raise
    return parity


def _writers(labels: bool, int8: str) -> Mapping[str, Callable[[StudentData, Path, list[Pair]], Written]]:
    from jax_rele.deployment import hugging_face, sentence_transformers, stablehlo, tei

    return {
        "onnx": lambda data, folder, pairs: write_onnx(data, folder, pairs, int8),
        "sentence-transformers": lambda data, folder, pairs: sentence_transformers.write(data, folder, pairs, labels),
        "tei": tei.write,
        "stablehlo": stablehlo.write,
        "hf": hugging_face.write,
    }


def write_onnx(data: StudentData, folder: Path, pairs: list[Pair], int8: str = "") -> Written:
    """A bundle, see `jax_rele.deployment.bundle`."""
    for name, graph in graphs(data):
        onnx.save(graph, str(folder / name))
        write_triton_config(folder, name, graph, data.name)
        del graph  # with the next one it would hold the weights twice
    write_tokenizer(data, folder)
    write_json(folder / "config.json", encoder_hf_config(data.student.model.encoder))
    write_manifest(folder, data.manifest)
    scorer, gate, notes = load_bundle(folder, batch_tokens=BATCH * 80), None, []
    if int8:
        full = scorer
        quantise(folder, data.manifest.graphs, int8)
        write_manifest(folder, data.manifest)
        scorer = load_bundle(folder, batch_tokens=BATCH * 80)
        gate = Gate.measure(data, full, scorer, int8)
    (folder / MANIFEST).unlink()
    if isinstance(data.student.model, TwoTower):
        notes.append(order_note(data.manifest))
    else:
        notes.append(vespa_note(pair_markers(data.student.tokenizer, 2), data.manifest))
    return Written(bundle_outputs(scorer, pairs), "logits", _USAGE[data.name], tuple(notes), gate)


_USAGE = {
    "cross_encoder": (
        "from jax_rele.deployment import load_bundle",
        "",
        'scorer = load_bundle("THIS_FOLDER")',
        'print(scorer.predict([("red shoes", "Acme running shoes")]).scores)',
    ),
    "two_tower": (
        "from jax_rele.deployment import load_bundle",
        "",
        'scorer = load_bundle("THIS_FOLDER")',
        'queries, items = scorer.embed(["red shoes"], "query"), scorer.embed(["Acme running shoes"], "item")',
        "print(scorer.compare(queries, items).scores)",
    ),
}


def order_note(manifest: Manifest) -> str:
    """Whether an index gives the order of a two-tower's scores."""
    if manifest.head == "maxsim":
        return (
            "Embeddings are one vector per token; scores need `compare.onnx`, and an index of single vectors does not."
        )
    if manifest.score_rises:
        kind = "inner product (or, as items have one length, cosine)" if manifest.unit_length else "inner product"
        return f"The score rises with the {kind} of the embeddings, so an index gives the score's order."
    return (
        "The score does not always rise with the inner product of the embeddings: take candidates from an index by "
        "inner "
        "product, then order them by `compare.onnx`."
    )


def graphs(data: StudentData) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The names of the student's ONNX files, and the models."""
    student, schema, temperature = data.student, data.student.label_schema, data.temperature
    names = {"logits", LABEL_LOGITS}
    names |= {"verdict_logits"} if student.has_verdicts else set()
    names |= {"evidence_logits"} if student.has_evidence and data.name == "cross_encoder" else set()
    outputs = frozenset(names)
    if isinstance(student.model, CrossEncoder):
        yield "model.onnx", cross_encoder_model(student.model, data.params, schema, temperature, outputs)
        return
    assert isinstance(student.model, TwoTower)
    yield "query.onnx", tower_model(student.model, data.params, 0)
    yield "item.onnx", tower_model(student.model, data.params, 1)
    yield "compare.onnx", compare_model(student.model, data.params, schema, temperature, outputs)


def write_tokenizer(data: StudentData, folder: Path, name: str = "") -> None:
    """The student's tokenizer in the Hugging Face form; `name` is a folder in `folder`."""
    data.student.tokenizer.save_pretrained(folder / name)


def bundle_outputs(scorer: Scorer, pairs: list[Pair]) -> dict[str, np.ndarray]:
    """What a bundle computes for pairs, as `_expected` has it."""
    embeddings = {}
    if scorer.embeds:
        queries, items = [pair.query for pair in pairs], [pair.item for pair in pairs]
        query, item = scorer.embed(queries, "query"), scorer.embed(items, "item")
        scores = scorer.compare(query, item)
        if scorer.manifest.head != "maxsim":
            embeddings = {"query_embedding": query, "item_embedding": item}
    else:
        scores = scorer.predict(pairs)
    outputs = {LABEL_LOGITS: _centred(np.log(scores.label_probs)), "logits": log_odds(scores.scores)}
    if scores.verdict_probs is not None:
        outputs["verdict_logits"] = _centred(np.log(scores.verdict_probs))
    return {**outputs, **embeddings}


def _expected(data: StudentData, pairs: list[Pair], names: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of the student in JAX that have these names."""
    student = data.student
    arrays = padded_inputs(student.model, student.tokenizer, pairs, student.input_spec)
    apply = jax.jit(student.model.apply)  # the parameters are an argument: as constants they would be copied
    judged = run_in_batches(partial(apply, student.variables), arrays)
    logits = np.asarray(judged.logits, np.float64) / data.temperature
    gains = student.label_schema.expected_gain(softmax(logits, axis=-1))
    outputs = {LABEL_LOGITS: _centred(logits), "logits": log_odds(gains), "score": gains}
    outputs["best_label_logit"] = outputs[LABEL_LOGITS][:, 0]
    if student.has_verdicts:
        outputs["verdict_logits"] = _centred(np.asarray(judged.verdict_logits, np.float64))
    if judged.query_embedding is not None:
        both = (np.asarray(judged.query_embedding, np.float64), np.asarray(judged.item_embedding, np.float64))
        outputs |= {name: value for name, value in zip(("query_embedding", "item_embedding"), both) if name in names}
        if "inner_product" in names:
            outputs["inner_product"] = (both[0] * both[1]).sum(axis=-1)
    return outputs


def run_in_batches(judge: Callable[..., StudentOutputs], arrays: Mapping[str, np.ndarray]) -> StudentOutputs:
    """The outputs for arrays of rows, all batches of one shape: one program is compiled."""
    count = len(next(iter(arrays.values())))
    rows = {name: np.resize(array, (-(-count // BATCH) * BATCH, *array.shape[1:])) for name, array in arrays.items()}
    parts = [
        jax.tree.map(np.asarray, judge(**{name: array[start : start + BATCH] for name, array in rows.items()}))
        for start in range(0, count, BATCH)
    ]
    return jax.tree.map(lambda *each: np.concatenate(each)[:count], *parts)


def _centred(logits: np.ndarray) -> np.ndarray:
    """Logits whose mean is 0, which is what their softmax knows of them."""
    return logits - logits.mean(axis=-1, keepdims=True)

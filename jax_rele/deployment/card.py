"""The model card of an exported student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jax_rele import __version__
from jax_rele.config import local_name
from jax_rele.deployment.bundle import Manifest
from jax_rele.deployment.student_data import StudentData

MARKERS = {
    "onnx": "By `jax_rele`, a marker such as `[SEP]` in a text stays text. Engines that read `tokenizer.json` alone "
    "may take "
    "it for a real marker: remove it from sellers' texts before they are sent.",
    "": "The engine that loads this folder may take a marker such as `[SEP]` in a seller's text for a real one: "
    "remove it "
    "before texts are sent.",
}


def model_card(
    data: StudentData,
    manifest: Manifest,
    form: str,
    usage: Sequence[str],
    parity: Mapping[str, object],
    notes: Sequence[str],
) -> str:
    """README.md of an exported student.

    Args:
      data: the student.
      manifest: what the export holds.
      form: the format.
      usage: lines of code that load it.
      parity: what `compare_outputs` returned.
      notes: further sentences.
    """
    kind = "cross-encoder" if manifest.model == "cross_encoder" else "two-tower"
    differences = parity["largest_difference"]
    assert isinstance(differences, Mapping)
    gains = ", ".join(f"{name} {gain:g}" for name, gain in zip(manifest.labels.names, manifest.labels.gains))
    calibration = (
        f"Label logits are divided by {manifest.temperature:.4g}, the temperature that fits the validation pairs "
        "best, so the "
        "probabilities mean what they say on pairs like those."
        if data.calibrated
        else "There were no validation pairs with labels, so nothing is calibrated: use scores for order alone."
    )
    config = data.config
    student, source = local_name(config.student.init), local_name(config.data.path)
    teacher = "" if config.score.signals else f" and a teacher that starts from `{local_name(config.teacher.init)}`"
    lines = [
        "---",
        "library_name: jax_rele",
        "tags: [text-ranking, e-commerce, product-search]",
        "---",
        "",
        f"# {data.config.name}: {kind}, recipe `{manifest.recipe}`, format `{form}`",
        "",
        f"Judges how well an item of a shop fits a search query. Trained by jax_rele {__version__}; parameters "
        f"{manifest.source['parameters']}.",
        "",
        "## What it reads",
        "",
        _lengths(manifest)
        + f" An item's text is its fields {', '.join(manifest.fields)}, those that are not empty, in "
        "this order, joined by one space. " + MARKERS.get(form, MARKERS[""]),
        "",
        "## What a score means",
        "",
        f"The expected gain, in [0, 1], under the predicted label distribution, with the gains {gains}. {calibration} "
        "Log-odds of the score (`logits`) give the same order and do not saturate.",
        "",
        "## How to load it",
        "",
        "```python",
        *usage,
        "```",
        "",
        "## Figures",
        "",
        *_figures(data),
        "",
        "## The exported form against JAX",
        "",
        f"On {parity['pairs']} pairs the largest differences are "
        + ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
        + f"; Spearman of the scores {parity['spearman']:.6f}.",
        *[f"\n{note}" for note in notes],
        "",
        "## Licences",
        "",
        f"Code Apache-2.0. The student starts from `{student}` and learnt from the pairs at `{source}`{teacher}; their "
        "licences apply.",
    ]
    return "\n".join(lines) + "\n"


def _lengths(manifest: Manifest) -> str:
    if manifest.model == "cross_encoder":
        return (
            f"A pair of at most {manifest.query_length + manifest.item_length} tokens, markers included; where it has "
            "more, "
            "the longer of the two texts loses its end."
        )
    return (
        f"A query of at most {manifest.query_length} tokens, an item of at most {manifest.item_length + 1}, markers "
        "included; what is longer loses its end."
    )


def _figures(data: StudentData) -> list[str]:
    metrics, name = data.metrics, f"{data.name}:{data.recipe}"
    lines = [
        f"{metrics['n_pairs']} pairs of {metrics['n_queries']} queries of the split `{metrics['split']}`, 95% "
        "intervals from "
        "resampled queries.",
        "",
        "| model | AUC | macro-F1 | ECE, calibrated |",
        "|---|---|---|---|",
    ]
    rows = {**metrics["baselines"], name: metrics["models"].get(name, {})}
    for model, values in rows.items():
        cells = (_cell(values.get(metric)) for metric in ("auc", "macro_f1", "ece_calibrated"))
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return lines


def _cell(metric: Mapping | None) -> str:
    if not metric or metric["value"] is None:
        return "-"
    if not metric.get("ci95"):
        return f"{metric['value']:.3f}"
    low, high = metric["ci95"]
    return f"{metric['value']:.3f} [{low:.3f}, {high:.3f}]"

"""8-bit weights for CPUs by ONNX Runtime, and the gate that a quantised student must pass on held-out pairs.

Quantised weights change scores, by how much depends on the student and the processor; so the gate is measured and its
figures are kept. Left in float32 in every preset: the tables, the heads, and the feed-forward's second products, whose
inputs have outliers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from jax_rele.deployment.encoder_graph import QUANTISED
from jax_rele.deployment.scorer import Scorer
from jax_rele.deployment.student_data import StudentData
from jax_rele.errors import UserError
from jax_rele.runs import layout

PRESETS: Mapping[str, Mapping[str, bool]] = {
    # Products of two 8-bit numbers saturate on x86 without VNNI unless weights have 7 bits.
    "any": {"per_channel": True, "reduce_range": True},
    "vnni": {"per_channel": True, "reduce_range": False},
}
PAIRS, SAMPLES = 1000, 500
LEAST = {"spearman": 0.99, "cosine_mean": 0.99, "cosine_min": 0.97, "top_10_overlap": 0.90}
MOST_AUC = 0.01
"""Largest loss of ROC-AUC that the interval of the change may not exclude to be below."""


@dataclass(frozen=True)
class Gate:
    """The 8-bit student against the float32 one; `figures` by name, `preset` of `PRESETS`."""

    figures: Mapping[str, float | list[float]]
    preset: str

    @classmethod
    def measure(cls, data: StudentData, full: Scorer, quantised: Scorer, preset: str) -> Gate:
        """Compares them on pairs of the test split, at most `PAIRS`."""
        pairs = layout.load_pairs(data.run_dir, "test")[:PAIRS]
        before, after = (scorer.predict(pairs).scores for scorer in (full, quantised))
        figures: dict[str, float | list[float]] = {
            "pairs": len(pairs),
            "spearman": float(spearmanr(before, after).statistic),
        }
        positive = np.array([pair.label in full.schema.positive for pair in pairs if pair.label is not None])
        labelled = np.array([pair.label is not None for pair in pairs])
        if 0 < positive.sum() < len(positive):
            change, low, high = _auc_change(positive, before[labelled], after[labelled])
            figures |= {"auc_change": change, "auc_change_ci95": [low, high]}
        if full.embeds and full.manifest.head != "maxsim":
            queries = [*dict.fromkeys(pair.query for pair in pairs)]
            items = [*dict.fromkeys(pair.item for pair in pairs)]
            vectors = [(s.embed(queries, "query"), s.embed(items, "item")) for s in (full, quantised)]
            cosines = np.concatenate([_cosines(a, b) for a, b in zip(*vectors)])
            tops = [np.argsort(-(q @ i.T), axis=1)[:, :10] for q, i in vectors]
            overlap = np.mean([len({*a} & {*b}) / len(a) for a, b in zip(*tops)])
            figures |= {
                "cosine_mean": float(cosines.mean()),
                "cosine_min": float(cosines.min()),
                "top_10_overlap": float(overlap),
            }
        return cls(figures, preset)

    @property
    def sentences(self) -> tuple[str, ...]:
        """For the card."""
        named = ", ".join(f"{name} {_shown(value)}" for name, value in self.figures.items())
        where = "x86 processors with VNNI" if self.preset == "vnni" else "x86 with or without VNNI, and ARM"
        return (
            f"8-bit weights, preset `{self.preset}`, for {where}. Against float32 on this machine: {named}. Results "
            "differ "
            "between processors: measure on yours.",
        )


def _shown(value: float | list[float]) -> str:
    return f"[{', '.join(f'{x:.4f}' for x in value)}]" if isinstance(value, list) else f"{value:.4g}"


def check_gate(gate: Gate, what: str) -> None:
    """Raises UserError where the 8-bit student is too far from the float32 one."""
    failed = []
    for name, least in LEAST.items():
        value = gate.figures.get(name, 1.0)
        if isinstance(value, float) and not value >= least:
            failed.append(f"{name} is {value:.3f}, below {least}")
    interval = gate.figures.get("auc_change_ci95")
    if isinstance(interval, list) and interval[0] < -MOST_AUC:
        failed.append(f"the AUC may fall by {-interval[0]:.3f} (95% interval), more than {MOST_AUC}")
    if failed:
        raise UserError(
            f"{what}: --int8 {gate.preset} is refused: {'; '.join(failed)}; nothing was written. Export without it"
        )


def quantise(folder: Path, names: Sequence[str], preset: str) -> None:
    """Replaces the encoders' graphs in a folder by 8-bit ones."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for name in names:
        if name == "compare.onnx":
            continue  # a few small products
        model = onnx.load(str(folder / name))
        products = [node.name for node in model.graph.node if node.name.startswith(QUANTISED)]
        temporary = folder / f"float32-{name}"
        (folder / name).rename(temporary)
        logging.disable(logging.WARNING)  # it recommends a step that these graphs do not need
        quantize_dynamic(
            str(temporary),
            str(folder / name),
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=products,
            weight_type=QuantType.QInt8,
            **PRESETS[preset],
        )
        logging.disable(logging.NOTSET)
        temporary.unlink()


def _auc_change(positive: np.ndarray, before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """The change of ROC-AUC, and its 95% interval from resampled pairs."""
    rng = np.random.default_rng(0)
    changes: list[float] = []
    while len(changes) < SAMPLES:
        chosen = rng.integers(0, len(positive), len(positive))
        if 0 < positive[chosen].sum() < len(positive):
            changes.append(
                np.subtract(*(roc_auc_score(positive[chosen], scores[chosen]) for scores in (after, before)))
            )
    whole = roc_auc_score(positive, after) - roc_auc_score(positive, before)
    return float(whole), *map(float, np.quantile(changes, [0.025, 0.975]))  # type: ignore[return-value]


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)

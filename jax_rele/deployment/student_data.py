"""What an export reads of a run: the student, its parameters as arrays, its temperature, its figures, and sample "
"pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from scipy.special import softmax

from jax_rele.config import Config
from jax_rele.deployment.bundle import Labels, Manifest
from jax_rele.errors import UserError
from jax_rele.models.files import read_json
from jax_rele.names import StudentName
from jax_rele.runs import layout
from jax_rele.runs.load import load_student, main_recipe, read_run
from jax_rele.students.prediction import Student
from jax_rele.students.two_tower import TwoTower
from jax_rele.types import Item, Pair, Params

SAMPLE = 128
"""Pairs of the test split on which an export is compared with the student in JAX."""

ODD_TEXTS = ("", "a", "x " * 600, "[SEP] [CLS] </s> <s>", "日本語 ünïcödé 👟", "0")
"""Texts that a tokenizer or a graph might treat in another way."""


@dataclass(frozen=True)
class StudentData:
    """A trained student and what is known of it.

    Attributes:
      run_dir: the run's folder.
      config: its config.
      name, recipe: which student.
      student: the student in JAX, in float32.
      params: its parameters as float32 numpy arrays.
      temperature: fitted on validation pairs; 1 where there were none with labels.
      calibrated: whether it was fitted.
      metrics: `evaluate/metrics.json`.
    """

    run_dir: Path
    config: Config
    name: StudentName
    recipe: str
    student: Student
    params: Params
    temperature: float
    calibrated: bool
    metrics: Mapping[str, Any]

    @property
    def manifest(self) -> Manifest:
        """The description of a bundle of this student, without files."""
        student, model = self.student, self.student.model
        schema = student.label_schema
        tower: dict[str, object] = {}
        if isinstance(model, TwoTower):
            tower = {
                "head": model.head,
                "embedding_width": embedding_width(model),
                "unit_length": model.normalize or model.head == "maxsim",
                "score_rises": score_rises(self),
            }
        return Manifest(
            model=self.name,
            recipe=self.recipe,
            labels=Labels(
                names=schema.names,
                gains=schema.gains,
                positive=schema.positive,
                aliases=dict(self.config.labels.aliases),
            ),
            dimensions=student.dimensions,
            has_verdicts=student.has_verdicts,
            has_evidence=student.has_evidence and self.name == "cross_encoder",
            fields=student.fields,
            query_length=student.query_length,
            item_length=student.item_length,
            temperature=self.temperature,
            source={"run": self.config.name, "parameters": _parameters_hash(self.params)},
            **tower,  # type: ignore[arg-type]  # checked by pydantic
        )


def _parameters_hash(params: Params) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the parameters' bytes, one array after the other."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()[:16]


def load_student_data(run_dir: Path, name: str, recipe: str | None) -> StudentData:
    """Reads a student of a run.

    Raises:
      UserError: as `load_student`; or the run is not evaluated.
    """
    config = read_run(run_dir)
    student = load_student(run_dir, name, recipe=recipe, dtype="float32", config=config)
    recipe = recipe or main_recipe(config)
    path = run_dir / layout.METRICS
    if not path.is_file():
        raise UserError(
            f"{path}: is missing; an export needs the temperature and the figures of `jax-rele evaluate CONFIG`"
        )
    metrics = read_json(path)
    decision = metrics["decision"].get(f"{name}:{recipe}", {})
    return StudentData(
        run_dir=run_dir,
        config=config,
        name=name,  # type: ignore[arg-type]  # load_student knows it
        recipe=recipe,
        student=student,
        params=jax.tree.map(lambda x: np.asarray(x, np.float32), nn.unbox(student.variables["params"])),
        temperature=float(decision.get("temperature", 1.0)),
        calibrated="temperature" in decision,
        metrics=metrics,
    )


def embedding_width(model: TwoTower) -> int:
    """Width of a two-tower's embeddings."""
    width = model.embedding_width or model.encoder.width
    has_views = model.verdict_pooling == "tokens" and model.head != "maxsim"
    return width + model.dimensions * model.view_width if has_views else width


def score_rises(data: StudentData) -> bool:
    """Whether the expected gain never falls where the inner product rises, so that an index gives the score's order."""
    model = data.student.model
    if not isinstance(model, TwoTower) or model.head == "mlp":
        return False
    # Of two parts of length at most 1: the text vectors, and each dimension's gated views.
    reach = 1.0 + (model.dimensions if model.verdict_pooling == "tokens" and model.head == "cosine" else 0)
    if not model.normalize and model.head == "cosine":
        reach = 100.0
    products = np.linspace(-reach, reach, 4001)[:, None]
    logits = (products * data.params["label_slope"] + data.params["label_bias"]) / data.temperature
    gains = data.student.label_schema.expected_gain(softmax(logits.astype(np.float64), axis=-1))
    return bool((np.diff(gains) >= -1e-12).all())


def sample_pairs(data: StudentData, count: int = SAMPLE) -> list[Pair]:
    """Pairs of the test split, spread evenly, and pairs of odd texts."""
    pairs = layout.load_pairs(data.run_dir, "test")
    chosen = [pairs[index] for index in np.unique(np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int))]
    odd = [Pair(f"odd-{n}", text, Item("", ODD_TEXTS[-1 - n])) for n, text in enumerate(ODD_TEXTS)]
    odd += [Pair(f"odd-item-{n}", "red shoes", Item("", text)) for n, text in enumerate(ODD_TEXTS)]
    return [*chosen, *odd]

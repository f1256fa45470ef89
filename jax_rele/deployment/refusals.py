"""What a format cannot express exactly; it is refused by name, never approximated."""

from __future__ import annotations

from jax_rele.deployment.student_data import StudentData
from jax_rele.errors import UserError
from jax_rele.students.cross_encoder import CrossEncoder
from jax_rele.students.two_tower import TwoTower

OTHER = "use --format onnx"


def check(data: StudentData, form: str) -> None:
    """Raises UserError where a format cannot hold a student exactly."""
    reason = reasons(data, form)
    if reason:
        raise UserError(f"--format {form}: {reason}")


def reasons(data: StudentData, form: str) -> str:
    """Why a format cannot hold a student exactly, or ''."""
    model = data.student.model
    if isinstance(model, CrossEncoder):
        if form == "hf":
            return (
                "the label also depends on the softmax of the verdicts, which no AutoModelForSequenceClassification "
                f"computes; {OTHER} or sentence-transformers"
            )
        if form == "sentence-transformers":
            if model.latent_width:
                return f"the latent extractor (student.cross_encoder.latent_width) is a softmax over tokens; {OTHER}"
            if model.verdict_pooling == "tokens":
                return (
                    "with student.verdict_pooling tokens each dimension has attention of its own over the tokens, "
                    "which no "
                    f"module of sentence-transformers computes; {OTHER}, or train with student.verdict_pooling pooled"
                )
        return ""
    assert isinstance(model, TwoTower)
    if form in ("sentence-transformers", "hf"):
        if model.head == "mlp":
            return f"the mlp head compares pairs, and the format has embeddings alone; {OTHER}"
        if model.head == "maxsim":
            return f"the maxsim head has one vector per token; {OTHER}"
        if model.verdict_pooling == "tokens":
            return (
                "with student.verdict_pooling tokens the embedding has a gated part for each dimension, which no "
                "module of "
                f"sentence-transformers computes; {OTHER}, or train with student.verdict_pooling pooled"
            )
    if form == "hf" and (model.embedding_width or model.towers == "separate" or model.distinguish_sides):
        key = (
            "two_tower.embedding_width"
            if model.embedding_width
            else "two_tower.towers"
            if model.towers == "separate"
            else "init"
        )
        return (
            f"a plain AutoModel has no projection and no sides of its own (student.{key}); use --format "
            "sentence-transformers or onnx"
        )
    if form == "tei" and model.head == "maxsim":
        return f"text-embeddings-inference serves one vector per text, and the maxsim head has one per token; {OTHER}"
    return ""

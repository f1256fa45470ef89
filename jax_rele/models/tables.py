"""The names of the parameters in the Hugging Face form: one table for decoders, one for each family of encoders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

LAYERS = "layers/"
"""Prefix of the parameters that stack all layers; Hugging Face has one tensor for each layer."""


@dataclass(frozen=True)
class WeightRow:
    """One parameter and its Hugging Face tensors.

    Attributes:
      path: of the parameter. A `kernel` is [in, out], the Hugging Face weight [out, in].
      name: of the tensor, with `{}` for the layer's number where the parameter is stacked.
      shift: the tensor's layer number less the parameter's.
      last: the tensor of the last layer, where it does not follow `name`.
      part, parts: the parameter is the `part`-th of `parts` equal groups of the tensor's rows.
    """

    path: str
    name: str
    shift: int = 0
    last: str = ""
    part: int = 0
    parts: int = 1

    def names(self, layers: int) -> tuple[str, ...]:
        """The tensors: one for each layer where the parameter is stacked, else one."""
        if "{}" not in self.name:
            return (self.name,)
        names = [self.name.format(layer + self.shift) for layer in range(layers)]
        return (*names[:-1], self.last or names[-1])


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model and its tensors.

    Attributes:
      row: its row of the table.
      names: its tensors, by layer where it is stacked.
      shape: of the parameter, [layers, ...] where stacked.
    """

    row: WeightRow
    names: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def path(self) -> str:
        return self.row.path

    @property
    def stacked(self) -> bool:
        return self.path.startswith(LAYERS)

    @property
    def transposed(self) -> bool:
        return self.path.endswith("/kernel")

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Of the rows of each tensor that belong to the parameter."""
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transposed else shape

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Of each whole tensor."""
        rows, *rest = self.part_shape
        return (rows * self.row.parts, *rest)


@dataclass(frozen=True)
class Layout:
    """The tensors of a family.

    Attributes:
      rows: every parameter that a model of the family can have.
      prefix: precedes the names in checkpoints of a model with a head.
      heads: prefixes of the tensors of such heads; they are ignored in checkpoints that have the prefix.
      computed: tensors of older checkpoints that follow from the config.
      renamed: old endings of names -> current ones.
      optional: paths that a checkpoint may lack, all or none.
      repeats: two tensors; where a model does not use the first, it may be present if it equals the second.
    """

    rows: tuple[WeightRow, ...]
    prefix: str = ""
    heads: tuple[str, ...] = ()
    computed: re.Pattern[str] = re.compile(r"(.*\.)?(rotary_emb\..*inv_freq|embeddings\.(position|token_type)_ids)")
    renamed: Mapping[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    repeats: tuple[str, str] | None = None


def _linear(path: str, name: str, part: int = 0, parts: int = 1) -> tuple[WeightRow, ...]:
    return tuple(
        WeightRow(f"{path}/{leaf}", f"{name}.{end}", part=part, parts=parts)
        for leaf, end in (("kernel", "weight"), ("bias", "bias"))
    )


def _linears(path: str, name: str, modules: str) -> list[WeightRow]:
    """The rows of several linear maps: each of the `modules` replaces the `*` of path and name."""
    return [row for each in modules.split() for row in _linear(path.replace("*", each), name.replace("*", each))]


def _norm(path: str, name: str, shift: int = 0, last: str = "") -> tuple[WeightRow, ...]:
    return tuple(
        WeightRow(f"{path}/{leaf}", f"{name}.{end}", shift, last and f"{last}.{end}")
        for leaf, end in (("scale", "weight"), ("bias", "bias"))
    )


_LAYER = "model.layers.{}."

DECODER = Layout(
    rows=(
        WeightRow("embedding", "model.embed_tokens.weight"),
        WeightRow("layers/input_norm/scale", _LAYER + "input_layernorm.weight"),
        *_linears("layers/attention/*", _LAYER + "self_attn.*", "q_proj k_proj v_proj o_proj"),
        WeightRow("layers/attention/q_norm/scale", _LAYER + "self_attn.q_norm.weight"),
        WeightRow("layers/attention/k_norm/scale", _LAYER + "self_attn.k_norm.weight"),
        WeightRow("layers/mlp_norm/scale", _LAYER + "post_attention_layernorm.weight"),
        *_linears("layers/mlp/*", _LAYER + "mlp.*", "gate_proj up_proj down_proj"),
        WeightRow("final_norm/scale", "model.norm.weight"),
        WeightRow("output_embedding", "lm_head.weight"),
    ),
    repeats=("lm_head.weight", "model.embed_tokens.weight"),
)
"""Qwen2, Qwen3, Llama and Mistral."""

LAYER_NORM = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""TensorFlow's names of a norm's parameters, as in the first BERT checkpoints."""


def _bert(prefix: str, *heads: str) -> Layout:
    layer = "encoder.layer.{}."
    return Layout(
        rows=(
            WeightRow("word_embedding", "embeddings.word_embeddings.weight"),
            WeightRow("position_embedding", "embeddings.position_embeddings.weight"),
            WeightRow("token_type_embedding", "embeddings.token_type_embeddings.weight"),
            *_norm("embedding_norm", "embeddings.LayerNorm"),
            *_linears("layers/*", layer + "attention.self.*", "query key value"),
            *_linear("layers/output", layer + "attention.output.dense"),
            *_norm("layers/attention_norm", layer + "attention.output.LayerNorm"),
            *_linear("layers/up", layer + "intermediate.dense"),
            *_linear("layers/down", layer + "output.dense"),
            *_norm("layers/mlp_norm", layer + "output.LayerNorm"),
            *_linear("pooler", "pooler.dense"),
        ),
        prefix=prefix,
        heads=(*heads, "classifier.", "qa_outputs."),
        renamed=LAYER_NORM,
        optional=frozenset({"pooler/kernel", "pooler/bias"}),
    )


def _distilbert() -> Layout:
    layer = "transformer.layer.{}."
    heads = ("vocab_transform.", "vocab_layer_norm.", "vocab_projector.", "pre_classifier.")
    return Layout(
        rows=(
            WeightRow("word_embedding", "embeddings.word_embeddings.weight"),
            WeightRow("position_embedding", "embeddings.position_embeddings.weight"),
            *_norm("embedding_norm", "embeddings.LayerNorm"),
            *_linear("layers/query", layer + "attention.q_lin"),
            *_linear("layers/key", layer + "attention.k_lin"),
            *_linear("layers/value", layer + "attention.v_lin"),
            *_linear("layers/output", layer + "attention.out_lin"),
            *_norm("layers/attention_norm", layer + "sa_layer_norm"),
            *_linear("layers/up", layer + "ffn.lin1"),
            *_linear("layers/down", layer + "ffn.lin2"),
            *_norm("layers/mlp_norm", layer + "output_layer_norm"),
        ),
        prefix="distilbert.",
        heads=(*heads, "classifier.", "qa_outputs."),
        renamed=LAYER_NORM,
    )


def _modernbert() -> Layout:
    layer = "layers.{}."
    return Layout(
        rows=(
            WeightRow("word_embedding", "embeddings.tok_embeddings.weight"),
            *_norm("embedding_norm", "embeddings.norm"),
            *_linear("layers/query", layer + "attn.Wqkv", part=0, parts=3),
            *_linear("layers/key", layer + "attn.Wqkv", part=1, parts=3),
            *_linear("layers/value", layer + "attn.Wqkv", part=2, parts=3),
            *_linear("layers/output", layer + "attn.Wo"),
            *_norm("layers/mlp_norm", layer + "mlp_norm"),
            *_linear("layers/gate", layer + "mlp.Wi", part=0, parts=2),
            *_linear("layers/up", layer + "mlp.Wi", part=1, parts=2),
            *_linear("layers/down", layer + "mlp.Wo"),
            # `next_norm` follows a layer; the Hugging Face form has the same norm before the next layer.
            *_norm("layers/next_norm", layer + "attn_norm", shift=1, last="final_norm"),
        ),
        prefix="model.",
        heads=("head.", "decoder.", "classifier.", "qa_outputs."),
    )


ENCODERS = {
    "bert": _bert("bert.", "cls.predictions.", "cls.seq_relationship."),
    "roberta": _bert("roberta.", "lm_head."),
    "xlm-roberta": _bert("roberta.", "lm_head."),
    "distilbert": _distilbert(),
    "modernbert": _modernbert(),
}
"""By `model_type`."""

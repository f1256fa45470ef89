"""What our parameters are called in the Hugging Face form: one table for decoders, one for each family of encoders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

LAYERS = "layers/"
"""Paths below it stack what the other side numbers."""


@dataclass(frozen=True)
class WeightRow:
    """One of our parameters and its tensors.

    Attributes:
      path: ours. A `kernel` is [in, out], their weight [out, in].
      name: theirs, with `{}` for the layer's number where ours is stacked.
      shift: their layer's number less ours.
      last: their name of our last layer's, where it is not `name`'s.
      part, parts: ours is the `part`-th of `parts` equal runs of their tensor's rows.
    """

    path: str
    name: str
    shift: int = 0
    last: str = ""
    part: int = 0
    parts: int = 1

    def names(self, layers: int) -> tuple[str, ...]:
        """Their tensors, by our layers where it is stacked."""
        if "{}" not in self.name:
            return (self.name,)
        names = [self.name.format(layer + self.shift) for layer in range(layers)]
        return (*names[:-1], self.last or names[-1])


@dataclass(frozen=True)
class Parameter:
    """One of a model's parameters and its tensors.

    Attributes:
      row: its row of the table.
      names: their tensors; by layer where ours is stacked.
      shape: ours, [layers, ...] where stacked.
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
        """Of the part that is ours of each of their tensors."""
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transposed else shape

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Of each of their tensors."""
        rows, *rest = self.part_shape
        return (rows * self.row.parts, *rest)


@dataclass(frozen=True)
class Layout:
    """The tensors of a family.

    Attributes:
      rows: every parameter that a model of the family can have.
      prefix: what stands before the names in checkpoints of a model with a head.
      heads: what the names of such heads' tensors begin with; they are left out where the prefix is there.
      computed: tensors of older folders that follow from the config.
      renamed: endings of names in older folders, and what they are now.
      optional: of the paths, those that a folder may lack, all or none.
      repeats: two tensors; where a model has no place for the first, it may be there if it equals the second.
    """

    rows: tuple[WeightRow, ...]
    prefix: str = ""
    heads: tuple[str, ...] = ()
    computed: re.Pattern = re.compile(r"(.*\.)?(rotary_emb\..*inv_freq|embeddings\.(position|token_type)_ids)")
    renamed: Mapping[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    repeats: tuple[str, str] | None = None


def _linear(path: str, name: str, **where) -> tuple[WeightRow, WeightRow]:
    return (WeightRow(f"{path}/kernel", f"{name}.weight", **where), WeightRow(f"{path}/bias", f"{name}.bias", **where))


def _norm(path: str, name: str, **where) -> tuple[WeightRow, WeightRow]:
    ends = {"last": where.pop("last")} if "last" in where else {}
    return tuple(
        WeightRow(
            f"{path}/{ours}", f"{name}.{theirs}", **where, **{key: f"{end}.{theirs}" for key, end in ends.items()}
        )
        for ours, theirs in (("scale", "weight"), ("bias", "bias"))
    )


DECODER = Layout(
    rows=(
        WeightRow("embedding", "model.embed_tokens.weight"),
        WeightRow("layers/input_norm/scale", "model.layers.{}.input_layernorm.weight"),
        *(
            row
            for name in ("q_proj", "k_proj", "v_proj", "o_proj")
            for row in _linear(f"layers/attention/{name}", f"model.layers.{{}}.self_attn.{name}")
        ),
        *(
            WeightRow(f"layers/attention/{name}/scale", f"model.layers.{{}}.self_attn.{name}.weight")
            for name in ("q_norm", "k_norm")
        ),
        WeightRow("layers/mlp_norm/scale", "model.layers.{}.post_attention_layernorm.weight"),
        *(
            row
            for name in ("gate_proj", "up_proj", "down_proj")
            for row in _linear(f"layers/mlp/{name}", f"model.layers.{{}}.mlp.{name}")
        ),
        WeightRow("final_norm/scale", "model.norm.weight"),
        WeightRow("output_embedding", "lm_head.weight"),
    ),
    repeats=("lm_head.weight", "model.embed_tokens.weight"),
)
"""Qwen2, Qwen3, Llama and Mistral."""

LAYER_NORM = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""What TensorFlow called a norm's parameters, as in the hub's first BERT folders."""


def _bert(prefix: str, *heads: str) -> Layout:
    layer = "encoder.layer.{}."
    return Layout(
        rows=(
            WeightRow("word_embedding", "embeddings.word_embeddings.weight"),
            WeightRow("position_embedding", "embeddings.position_embeddings.weight"),
            WeightRow("token_type_embedding", "embeddings.token_type_embeddings.weight"),
            *_norm("embedding_norm", "embeddings.LayerNorm"),
            *(
                row
                for name in ("query", "key", "value")
                for row in _linear(f"layers/{name}", f"{layer}attention.self.{name}")
            ),
            *_linear("layers/output", f"{layer}attention.output.dense"),
            *_norm("layers/attention_norm", f"{layer}attention.output.LayerNorm"),
            *_linear("layers/up", f"{layer}intermediate.dense"),
            *_linear("layers/down", f"{layer}output.dense"),
            *_norm("layers/mlp_norm", f"{layer}output.LayerNorm"),
            *_linear("pooler", "pooler.dense"),
        ),
        prefix=prefix,
        heads=(*heads, "classifier.", "qa_outputs."),
        renamed=LAYER_NORM,
        optional=frozenset({"pooler/kernel", "pooler/bias"}),
    )


_ROBERTA = _bert("roberta.", "lm_head.")

ENCODERS = {
    "bert": _bert("bert.", "cls.predictions.", "cls.seq_relationship."),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": Layout(
        rows=(
            WeightRow("word_embedding", "embeddings.word_embeddings.weight"),
            WeightRow("position_embedding", "embeddings.position_embeddings.weight"),
            *_norm("embedding_norm", "embeddings.LayerNorm"),
            *(
                row
                for ours, theirs in (("query", "q_lin"), ("key", "k_lin"), ("value", "v_lin"), ("output", "out_lin"))
                for row in _linear(f"layers/{ours}", f"transformer.layer.{{}}.attention.{theirs}")
            ),
            *_norm("layers/attention_norm", "transformer.layer.{}.sa_layer_norm"),
            *_linear("layers/up", "transformer.layer.{}.ffn.lin1"),
            *_linear("layers/down", "transformer.layer.{}.ffn.lin2"),
            *_norm("layers/mlp_norm", "transformer.layer.{}.output_layer_norm"),
        ),
        prefix="distilbert.",
        heads=(
            "vocab_transform.",
            "vocab_layer_norm.",
            "vocab_projector.",
            "pre_classifier.",
            "classifier.",
            "qa_outputs.",
        ),
        renamed=LAYER_NORM,
    ),
    "modernbert": Layout(
        rows=(
            WeightRow("word_embedding", "embeddings.tok_embeddings.weight"),
            *_norm("embedding_norm", "embeddings.norm"),
            *(
                row
                for part, name in enumerate(("query", "key", "value"))
                for row in _linear(f"layers/{name}", "layers.{}.attn.Wqkv", part=part, parts=3)
            ),
            *_linear("layers/output", "layers.{}.attn.Wo"),
            *_norm("layers/mlp_norm", "layers.{}.mlp_norm"),
            *_linear("layers/gate", "layers.{}.mlp.Wi", part=0, parts=2),
            *_linear("layers/up", "layers.{}.mlp.Wi", part=1, parts=2),
            *_linear("layers/down", "layers.{}.mlp.Wo"),
            # Ours is the norm after a layer, theirs the one before the next.
            *_norm("layers/next_norm", "layers.{}.attn_norm", shift=1, last="final_norm"),
        ),
        prefix="model.",
        heads=("head.", "decoder.", "classifier.", "qa_outputs."),
    ),
}
"""By `model_type`."""

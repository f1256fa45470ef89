"""Folders that sentence-transformers 5.7 and newer loads as they are, without code of ours.

A two-tower is Transformer, Pooling, Dense, Normalize; where the sides differ, a Router has one Transformer for each. A
cross-encoder's label also reads the softmax of each dimension's verdicts. That is a chain of residual Dense modules:
the one of dimension d has three outputs for the verdicts on d, whose softmax it takes, and carries the representation x
and the label logits so far on its residual path:

    z_d = softmax(A_d z_{d-1} + a_d) + R_d z_{d-1},        z = [verdicts (3) | label logits so far (C) | x (W)]

where a_d is so low for all outputs but the verdicts that their softmax is 0, and R_d adds what the last verdicts say to
the label logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy.special import softmax

from jax_rele.deployment import export
from jax_rele.deployment.hugging_face import normalised, pool, side_texts, token_vectors, write_encoder, write_pooling
from jax_rele.deployment.student_data import StudentData
from jax_rele.io import write_json
from jax_rele.students.cross_encoder import CrossEncoder
from jax_rele.students.two_tower import TwoTower
from jax_rele.types import VERDICTS, Pair

TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
DENSE = "sentence_transformers.base.modules.dense.Dense"
NORMALIZE = "sentence_transformers.base.modules.normalize.Normalize"
ROUTER = "sentence_transformers.base.modules.router.Router"
OLD = {
    TRANSFORMER: "sentence_transformers.models.Transformer",
    POOLING: "sentence_transformers.models.Pooling",
    DENSE: "sentence_transformers.models.Dense",
    NORMALIZE: "sentence_transformers.models.Normalize",
}
"""Names of the modules that every release since 3 imports."""

IDENTITY = "torch.nn.modules.linear.Identity"
SOFTMAX = "torch.nn.modules.activation.Softmax"
TANH = "torch.nn.modules.activation.Tanh"
LOW = -1e9
"""A logit whose softmax is 0 in float32."""

VERSIONS = {"sentence_transformers": "6.2.0", "transformers": "5.0.0", "pytorch": "2.9.0"}
"""What the form was written for; newer ones read it too."""


class DenseModule:
    """One Dense module: y = activation(weight x + bias) + residual x."""

    def __init__(
        self,
        weight: np.ndarray,
        bias: np.ndarray,
        activation: str = IDENTITY,
        residual: np.ndarray | None = None,
        output: str = "sentence_embedding",
    ):
        self.weight, self.bias, self.residual = weight, bias, residual
        self.activation, self.output = activation, output

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """[N, in] -> [N, out], in float32 as sentence-transformers computes it."""
        y = x @ self.weight.T + self.bias
        if self.activation == TANH:
            y = np.tanh(y)
        elif self.activation == SOFTMAX:
            y = softmax(y, axis=-1)
        return y if self.residual is None else y + x @ self.residual.T

    def write(self, folder: Path) -> None:
        """Writes the module's folder."""
        folder.mkdir(parents=True)
        config: dict[str, object] = {
            "in_features": self.weight.shape[1],
            "out_features": self.weight.shape[0],
            "bias": True,
            "activation_function": self.activation,
            "module_input_name": "sentence_embedding",
            "module_output_name": self.output,
        }
        tensors = {"linear.weight": self.weight, "linear.bias": self.bias}
        if self.residual is not None:
            config["use_residual"] = True
            tensors["residual.weight"] = self.residual
        write_json(folder / "config.json", config)
        save_file({k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}, folder / "model.safetensors")


def write(data: StudentData, folder: Path, pairs: list[Pair], labels: bool = False) -> export.Written:
    """Fills the folder; `labels`: a cross-encoder gives calibrated label logits instead of the score."""
    if isinstance(data.student.model, CrossEncoder):
        return _write_cross_encoder(data, folder, pairs, labels)
    return _write_two_tower(data, folder, pairs)


def _write_cross_encoder(data: StudentData, folder: Path, pairs: list[Pair], labels: bool) -> export.Written:
    length = data.manifest.query_length + data.manifest.item_length
    write_encoder(data, folder, data.params["encoder"], length)
    _write_transformer(folder)
    write_pooling(folder, data.student.model.encoder.width, "cls")
    chain = label_chain(data)
    if not labels:
        count = len(data.student.label_schema)
        gains = np.asarray(data.student.label_schema.gains, np.float32)[None]
        chain.append(DenseModule(np.eye(count, dtype=np.float32), np.zeros(count, np.float32), SOFTMAX))
        chain.append(DenseModule(gains, np.zeros(1, np.float32)))
    chain[-1].output = "scores"
    modules = [(TRANSFORMER, ""), (POOLING, "1_Pooling")]
    for number, module in enumerate(chain, start=2):
        module.write(folder / f"{number}_Dense")
        modules.append((DENSE, f"{number}_Dense"))
    _write_modules(folder, modules, {"model_type": "CrossEncoder", "activation_fn": IDENTITY, "prompts": {}})
    texts = [side_texts(data, pairs, side) for side in ("query", "item")]
    x = pool(token_vectors(folder, texts[0], length, second=texts[1]), "first")
    for module in chain:
        x = module(x)
    usage = (
        "from sentence_transformers import CrossEncoder",
        "",
        'model = CrossEncoder("THIS_FOLDER")',
        'print(model.predict([("red shoes", "Acme running shoes")]))',
        *(() if labels else ('print(model.rank("red shoes", ["Acme running shoes", "Acme sofa"]))',)),
    )
    if labels:
        names = ", ".join(data.manifest.labels.names)
        note = f"`predict` gives calibrated label logits in the order {names}; their softmax is the label distribution."
        centred = x - x.mean(axis=-1, keepdims=True)
        outputs = {"label_logits": centred, "best_label_logit": centred[:, 0]}
        return export.Written(outputs, "best_label_logit", usage, (note,))
    note = (
        "`predict` gives the score itself, in [0, 1]. Keep float32: half precision has no logits as low as the chain's."
    )
    return export.Written({"score": x[:, 0]}, "score", usage, (note,))


def label_chain(data: StudentData) -> list[DenseModule]:
    """The modules from the first token's vector to the calibrated label logits."""
    params, model = data.params, data.student.model
    width, count, verdicts = model.encoder.width, model.labels, len(VERDICTS)
    pooler, verdict_head = params["encoder"]["pooler"], params["verdict_head"]
    of_verdicts = params["label_of_verdicts"]["kernel"].T / data.temperature  # [C, D * 3]
    modules = [DenseModule(pooler["kernel"].T, pooler["bias"], TANH)]
    before = width  # outputs of the module before; x stands at their end
    for d in range(model.dimensions):
        own = slice(d * verdicts, (d + 1) * verdicts)
        # As wide as the module before, the residual would be the identity.
        spare = d % 2
        size = verdicts + spare + count + width
        weight, bias = np.zeros((size, before), np.float32), np.full(size, LOW, np.float32)
        weight[:verdicts, before - width :] = verdict_head["kernel"].T[own]
        bias[:verdicts] = verdict_head["bias"][own]
        residual = np.zeros((size, before), np.float32)
        residual[size - width :, before - width :] = np.eye(width)
        if d:
            at, old = size - width - count, before - width - count
            residual[at : at + count, old : old + count] = np.eye(count)
            residual[at : at + count, :verdicts] = of_verdicts[:, own.start - verdicts : own.start]
        modules.append(DenseModule(weight, bias, SOFTMAX, residual))
        before = size
    weight = np.zeros((count, before), np.float32)
    weight[:, :verdicts] = of_verdicts[:, -verdicts:]
    weight[:, before - width - count : before - width] = np.eye(count)
    weight[:, before - width :] = params["label_head"]["kernel"].T / data.temperature
    bias = (params["label_head"]["bias"] + params["label_of_verdicts"]["bias"]) / data.temperature
    return [*modules, DenseModule(weight, bias)]


def _write_two_tower(data: StudentData, folder: Path, pairs: list[Pair]) -> export.Written:
    model, manifest, params = data.student.model, data.manifest, data.params
    assert isinstance(model, TwoTower)
    mode = "mean" if model.pooling == "mean" else "cls"
    lengths = {"query": manifest.query_length, "item": manifest.item_length + 1}
    tail: list[tuple[str, str]] = []
    dense = None
    if model.embedding_width:
        projection = params["projection"]
        dense = DenseModule(projection["kernel"].T, projection["bias"])
    differ = model.towers == "separate" or (model.distinguish_sides and model.encoder.token_types > 1)
    first = 1 if differ else 2
    if dense is not None:
        dense.write(folder / f"{first}_Dense") if differ else None
        tail.append((DENSE, f"{first}_Dense"))
    if model.normalize:
        tail.append((NORMALIZE, f"{first + len(tail)}_Normalize"))
    if differ:
        folders = {side: folder / f"{role}_0_Transformer" for side, role in (("query", "query"), ("item", "document"))}
        for number, (side, path) in enumerate(folders.items()):
            tower = "encoder" if model.towers == "shared" else f"{side}_encoder"
            write_encoder(
                data, path, params[tower], lengths[side], types_of_side=number if model.distinguish_sides else None
            )
            _write_transformer(path)
            write_pooling(path, model.encoder.width, mode)
            (path / "1_Pooling").rename(folder / path.name.replace("0_Transformer", "1_Pooling"))
        _write_router(folder)
        modules = [(ROUTER, ""), *tail]
    else:
        write_encoder(data, folder, params["encoder"], max(lengths.values()))
        _write_transformer(folder, query_length=lengths["query"], document_length=lengths["item"])
        write_pooling(folder, model.encoder.width, mode)
        if dense is not None:
            dense.write(folder / f"{first}_Dense")
        folders = dict.fromkeys(lengths, folder)
        modules = [(TRANSFORMER, ""), (POOLING, "1_Pooling"), *tail]
    for kind, name in tail:
        if kind == NORMALIZE:
            (folder / name).mkdir()
    config = {
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": ""},
        "similarity_fn_name": "dot",
    }
    _write_modules(
        folder, [(OLD.get(kind, kind), name) for kind, name in modules], {**config, "default_prompt_name": None}
    )
    outputs = {}
    for side, length in lengths.items():
        x = pool(token_vectors(folders[side], side_texts(data, pairs, side), length), model.pooling)
        x = x if dense is None else dense(x)
        outputs[f"{side}_embedding"] = normalised(x) if model.normalize else x
    inner = (outputs["query_embedding"].astype(np.float64) * outputs["item_embedding"]).sum(axis=-1)
    usage = (
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer("THIS_FOLDER")',
        'queries, items = model.encode_query(["red shoes"]), model.encode_document(["Acme running shoes", "Acme '
        'sofa"])',
        "print(model.similarity(queries, items))",
    )
    note = export.order_note(manifest).replace("`compare.onnx`", "the format `onnx`")
    return export.Written({**outputs, "inner_product": inner}, "inner_product", usage, (note,))


def _write_transformer(folder: Path, **lengths: int) -> None:
    values: dict[str, object] = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
    }
    write_json(folder / "sentence_bert_config.json", {**values, **lengths})


def _write_router(folder: Path) -> None:
    routes = {role: [f"{role}_0_Transformer", f"{role}_1_Pooling"] for role in ("query", "document")}
    types = {name: POOLING if name.endswith("Pooling") else TRANSFORMER for names in routes.values() for name in names}
    parameters = {"default_route": "document", "allow_empty_key": True, "route_mappings": {}}
    write_json(folder / "router_config.json", {"types": types, "structure": routes, "parameters": parameters})


def _write_modules(folder: Path, modules: Sequence[tuple[str, str]], config: dict[str, object]) -> None:
    rows = [{"idx": n, "name": str(n), "path": name, "type": kind} for n, (kind, name) in enumerate(modules)]
    write_json(folder / "modules.json", rows)
    write_json(folder / "config_sentence_transformers.json", {"__version__": VERSIONS, **config})

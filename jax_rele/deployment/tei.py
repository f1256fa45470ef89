"""The form of text-embeddings-inference: an ONNX graph whose output has the name that it reads, and no other weights.

A cross-encoder is a reranker of one logit, the log-odds of the score, of which the server makes the score by its
sigmoid. A two-tower is a folder for each side. There is no `model.safetensors`: the server would fall back to it with a
head of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from tokenizers import Tokenizer

from jax_rele.deployment import export
from jax_rele.deployment.hugging_face import write_pooling
from jax_rele.deployment.scorer import Scorer
from jax_rele.deployment.student_data import StudentData
from jax_rele.deployment.student_graph import cross_encoder_model
from jax_rele.io import write_json
from jax_rele.models.encoder_families import encoder_hf_config
from jax_rele.students.cross_encoder import CrossEncoder
from jax_rele.types import Pair

IMAGE = "ghcr.io/huggingface/text-embeddings-inference:cpu-1.9"


def write(data: StudentData, folder: Path, pairs: list[Pair]) -> export.Written:
    """Fills the folder; a two-tower has the folders `query` and `item`."""
    config = dict(encoder_hf_config(data.student.model.encoder))
    config["pad_token_id"] = data.student.tokenizer.pad_token_id
    if isinstance(data.student.model, CrossEncoder):
        return _write_reranker(data, data.student.model, folder, pairs, config)
    return _write_towers(data, folder, pairs, config)


def _write_reranker(
    data: StudentData, model: CrossEncoder, folder: Path, pairs: list[Pair], config: dict[str, object]
) -> export.Written:
    names = config["architectures"]
    assert isinstance(names, list)
    kind = str(names[0]).removesuffix("Model") + "ForSequenceClassification"
    config |= {"architectures": [kind], "id2label": {"0": "score"}, "label2id": {"score": 0}}
    outputs = frozenset({"logits"})
    graph = cross_encoder_model(model, data.params, data.student.label_schema, data.temperature, outputs)
    _write_folder(data, folder, config, graph, data.manifest.query_length + data.manifest.item_length)
    usage = (
        f"# docker run -p 8080:80 -v THIS_FOLDER:/model {IMAGE} --model-id /model",
        "import requests",
        "",
        'body = {"query": "red shoes", "texts": ["Acme running shoes"]}',
        'answer = requests.post("http://localhost:8080/rerank", json=body)',
    )
    notes = ("The server makes the score of the logit by its sigmoid; with `raw_scores` it returns log-odds.",)
    return export.Written({"logits": _logits(data, folder, pairs)}, "logits", usage, notes)


def _write_towers(data: StudentData, folder: Path, pairs: list[Pair], config: dict[str, object]) -> export.Written:
    manifest, outputs, towers = data.manifest, {}, dict(export.graphs(data))
    for side, length in (("query", manifest.query_length), ("item", manifest.item_length + 1)):
        (folder / side).mkdir()
        _write_folder(data, folder / side, config, towers[f"{side}.onnx"], length)
        write_pooling(folder / side, manifest.embedding_width, "mean")
        scorer = _scorer(data, {f"{side}.onnx": folder / side / "model.onnx"})
        outputs[f"{side}_embedding"] = scorer.embed(
            [pair.query if side == "query" else pair.item for pair in pairs], side
        )
    inner = (outputs["query_embedding"].astype(np.float64) * outputs["item_embedding"]).sum(axis=-1)
    usage = (
        f"# a server for each side: docker run -p 8080:80 -v THIS_FOLDER/query:/model {IMAGE} --model-id /model",
        "import requests",
        "",
        'body = {"inputs": "red shoes", "normalize": False}',
        'answer = requests.post("http://localhost:8080/embed", json=body)',
    )
    notes = ("Ask `/embed` with `normalize: false`: embeddings are compared by inner product as they are.",)
    return export.Written({**outputs, "inner_product": inner}, "inner_product", usage, notes)


def _write_folder(data: StudentData, folder: Path, raw: dict, graph: onnx.ModelProto, length: int) -> None:
    onnx.save(graph, str(folder / "model.onnx"))
    export.write_tokenizer(data, folder)
    # Engines that read this file alone (OpenSearch's) cut texts by it; the server sets its own.
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length, strategy="longest_first")
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", raw)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})


def _scorer(data: StudentData, files: dict[str, Path]) -> Scorer:
    import onnxruntime

    sessions = {
        name: onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        for name, file in files.items()
    }
    return Scorer(data.manifest, data.student.tokenizer, sessions)


def _logits(data: StudentData, folder: Path, pairs: list[Pair]) -> np.ndarray:
    return _scorer(data, {"model.onnx": folder / "model.onnx"}).raw_outputs(pairs)["logits"][:, 0]

"""What other engines need beside a bundle's ONNX files: Triton's configs, and what Vespa writes as a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto

from jax_rele.deployment.bundle import Manifest
from jax_rele.io import write_text

TRITON = "triton"
"""Folder of a bundle: a folder for each graph, in which Triton's `config.pbtxt` is."""
MAX_BATCH = 64
_TYPES: dict[int, str] = {TensorProto.INT64: "TYPE_INT64", TensorProto.FLOAT: "TYPE_FP32"}


def write_triton_config(folder: Path, file: str, graph: onnx.ModelProto, model: str) -> None:
    """Writes Triton's config of a graph.

    Args:
      folder: the bundle.
      file: the graph's file in it.
      graph: the graph; every input and output begins with the batch.
      model: name of the bundle's student, by which the graph `model.onnx` is called.
    """
    name = model if file == "model.onnx" else Path(file).stem
    text = "".join(
        [
            f"# {file} of the bundle is {name}/1/model.onnx of Triton's model repository.\n",
            f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: {MAX_BATCH}\ndynamic_batching {{ }}\n',
            _tensors("input", graph.graph.input),
            _tensors("output", graph.graph.output),
        ]
    )
    path = folder / TRITON / name / "config.pbtxt"
    path.parent.mkdir(parents=True)
    write_text(path, text)


def _tensors(field: str, values: Sequence[onnx.ValueInfoProto]) -> str:
    """Tensors in protobuf's text format; Triton adds the batch itself, and -1 is a size that may vary."""
    rows = []
    for value in values:
        tensor = value.type.tensor_type
        sizes = ", ".join(str(size.dim_value or -1) for size in tensor.shape.dim[1:])
        rows.append(f'  {{ name: "{value.name}", data_type: {_TYPES[tensor.elem_type]}, dims: [ {sizes} ] }}')
    return f"{field} [\n" + ",\n".join(rows) + "\n]\n"


def vespa_note(markers: Sequence[Sequence[int]], manifest: Manifest) -> str:
    """How a cross-encoder's pair is written in a rank profile of Vespa, as a sentence.

    Vespa writes one token at the start and one after each text, then zeros.

    Args:
      markers: the tokens before, between and after the two texts.
      manifest: the bundle's description.
    """
    before, between, after = (list(each) for each in markers)
    if len(before) != 1 or len(between) != 1 or between != after:
        return "Vespa cannot write the pair: its tokenizer puts other markers than one before and one after each text."
    length = manifest.query_length + manifest.item_length
    arguments = f"{length}, query(q), attribute(tokens)"
    if (before[0], after[0]) == (101, 102):
        return f"Vespa writes the pair by `tokenInputIds({arguments})`."
    return f"Vespa writes the pair by `customTokenInputIds({before[0]}, {after[0]}, {arguments})`."

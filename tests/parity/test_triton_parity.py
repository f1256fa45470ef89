"""Triton's configs that a bundle holds, read by Triton's own schema."""

import importlib.util
from pathlib import Path

import pytest
from google.protobuf import text_format
from onnx import load

from jax_rele import cli


def model_config():
    """The message `ModelConfig` of `tritonclient`, from its file: the package itself also wants gRPC."""
    root = Path(importlib.util.find_spec("tritonclient").origin).parent
    spec = importlib.util.spec_from_file_location("model_config_pb2", root / "grpc" / "model_config_pb2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cross_encoder", "two_tower"])
def test_configs_hold_what_the_graphs_take_and_give(tiny, tmp_path, model):
    bundle, schema = tmp_path / "bundle", model_config()
    assert cli.main(["export", str(tiny[1]), "--model", model, "--output", str(bundle)]) == 0
    folders = sorted((bundle / "triton").iterdir())
    assert len(folders) == {"cross_encoder": 1, "two_tower": 3}[model]
    for folder in folders:
        config = text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), schema.ModelConfig())
        assert config.name == folder.name
        assert config.backend == "onnxruntime"
        assert config.HasField("dynamic_batching")
        assert config.max_batch_size > 1
        graph = load(bundle / ("model.onnx" if folder.name == "cross_encoder" else f"{folder.name}.onnx")).graph
        for ours, theirs in ((graph.input, config.input), (graph.output, config.output)):
            assert [each.name for each in theirs] == [each.name for each in ours]
            for value, tensor in zip(ours, theirs):
                kind = {7: schema.TYPE_INT64, 1: schema.TYPE_FP32}[value.type.tensor_type.elem_type]
                assert tensor.data_type == kind
                assert list(tensor.dims) == [size.dim_value or -1 for size in value.type.tensor_type.shape.dim][1:]
    with pytest.raises(text_format.ParseError, match="dynamic_batch"):
        text_format.Parse("dynamic_batch { }", schema.ModelConfig())

"""ONNX graphs, node by node: the operators that the students' graphs are made of.

Only standard operators of opset 17, so that any engine runs the graphs. They are built from numpy arrays; no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
"""Of ONNX 1.12, the first release with opset 17: older engines refuse later ones."""

LARGE = 10_000
"""Bytes above which a constant is a weight, and none of the numbers that shapes are made of."""

MASKED = -1e30
"""Score of what attention must not see: finite, so that a row without tokens does not give NaN."""


class Graph:
    """A graph under construction. Values are names; a Python number or array becomes a constant."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[bytes, str] = {}
        self.initializers: list[onnx.TensorProto] = []
        self.count = 0

    def constant(self, value: object, dtype: type | None = None) -> str:
        """The name of an initializer; equal ones are stored once."""
        # Not ascontiguousarray, which makes a scalar one-dimensional.
        array = np.asarray(value, dtype)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        key = hashlib.sha256(repr((array.dtype, array.shape)).encode() + array.tobytes()).digest()
        if key not in self.constants:
            self.constants[key] = f"c{len(self.constants)}"
            self.initializers.append(numpy_helper.from_array(array, self.constants[key]))
        return self.constants[key]

    def op(
        self,
        kind: str,
        *inputs: str | float | np.ndarray | Sequence[int],
        name: str = "",
        tag: str = "",
        **attributes: Any,
    ) -> str:
        """Adds a node, whose own name begins with `tag`; returns its output, called `name` or a number."""
        names = [value if isinstance(value, str) else self.constant(value, _dtype(value)) for value in inputs]
        self.count += 1
        output = name or f"v{self.count}"
        self.nodes.append(helper.make_node(kind, names, [output], name=f"{tag or kind}_{self.count}", **attributes))
        return output

    def dense(self, x: str, params: dict, tag: str = "") -> str:
        """x @ kernel + bias, as `flax.linen.Dense`; the bias may be missing. `tag` begins the product's name."""
        y = self.op("MatMul", x, np.asarray(params["kernel"], np.float32), tag=tag)
        return self.op("Add", y, np.asarray(params["bias"], np.float32)) if "bias" in params else y

    def layer_norm(self, x: str, params: dict, eps: float) -> str:
        """`flax.linen.LayerNorm` over the last axis."""
        scale = np.asarray(params["scale"], np.float32)
        bias = [np.asarray(params["bias"], np.float32)] if "bias" in params else []
        return self.op("LayerNormalization", x, scale, *bias, axis=-1, epsilon=eps)

    def unit(self, x: str) -> str:
        """x divided by its length along the last axis, as the two-tower's vectors."""
        square = self.op("ReduceSum", self.op("Mul", x, x), [-1], keepdims=1)
        return self.op("Div", x, self.op("Sqrt", self.op("Add", square, 1e-12)))

    def model(
        self, inputs: Sequence[tuple[str, int, Sequence[str | int]]], outputs: Sequence[tuple[str, Sequence[str | int]]]
    ) -> onnx.ModelProto:
        """The finished model, checked.

        Args:
          inputs: name, type and shape of each, where a word is a size that may vary.
          outputs: name and shape of each; all are float32.
        """
        values = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs]
        large = [tensor for tensor in self.initializers if tensor.ByteSize() > LARGE]
        small = [tensor for tensor in self.initializers if tensor.ByteSize() <= LARGE]
        # Checked with the weights as inputs of their type and shape: the checker copies what it is given three times.
        weights = [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large]
        onnx.checker.check_model(self._model([*values, *weights], results, small), full_check=True)
        return self._model(values, results, self.initializers)

    def _model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        initializers: Sequence[onnx.TensorProto],
    ) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "jax_rele", inputs, outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="jax_rele")


def _dtype(value: object) -> type | None:
    """Lists are of integers, for axes and shapes; numbers are float32."""
    if isinstance(value, np.ndarray):
        return None
    return np.int64 if isinstance(value, list | tuple) else np.float32

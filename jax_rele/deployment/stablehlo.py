"""A portable program for JAX servers: StableHLO by `jax.export`, for any batch and length, on CPUs, GPUs and TPUs.

A newer JAX reads it for six months; it is not an archive. Parameters are arguments, in a file beside it.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export as jax_export
from safetensors.numpy import save_file

from jax_rele.data.tokens.packing import pad
from jax_rele.deployment import export
from jax_rele.deployment.student_data import StudentData
from jax_rele.deployment.student_graph import SMALLEST
from jax_rele.io import write_json
from jax_rele.students.base import input_rows
from jax_rele.types import Pair

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, PARAMS = "model.stablehlo", "params.safetensors"


def write(data: StudentData, folder: Path, pairs: list[Pair]) -> export.Written:
    """Fills the folder."""
    student, model = data.student, data.student.model
    params = flatten_dict(data.params, sep="/")
    gains = jnp.asarray(student.label_schema.gains, jnp.float32)

    def judge(params: dict, inputs: dict) -> dict:
        outputs = model.apply(
            {"params": unflatten_dict(params, sep="/")},
            **{k: v == 1 if k.endswith("valid") else v for k, v in inputs.items()},
        )
        labels = outputs.logits / data.temperature
        probs = jax.nn.softmax(labels)
        gain, loss = (jnp.clip(probs @ part, SMALLEST, 1 - SMALLEST) for part in (gains, 1 - gains))
        named = {"logits": jnp.log(gain) - jnp.log(loss), "label_logits": labels}
        if student.has_verdicts:
            named["verdict_logits"] = outputs.verdict_logits
        for side in ("query_embedding", "item_embedding"):
            if getattr(outputs, side) is not None:
                named[side] = getattr(outputs, side)
        return named

    spec = model.batch_spec(student.input_spec)
    most = model.encoder.max_length
    sizes = {name: "q" if name.startswith("query") else "i" if name.startswith("item") else "l" for name in spec}
    scope = jax_export.SymbolicScope([f"{size} <= {most}" for size in sorted(set(sizes.values()))])
    arguments = {
        name: jax.ShapeDtypeStruct(jax_export.symbolic_shape(f"b, {sizes[name]}", scope=scope), jnp.int32)
        for name in spec
    }
    shapes = {name: jax.ShapeDtypeStruct(value.shape, jnp.float32) for name, value in params.items()}
    program = jax_export.export(jax.jit(judge), platforms=PLATFORMS)(shapes, arguments)
    (folder / PROGRAM).write_bytes(program.serialize())
    save_file({name: np.ascontiguousarray(value) for name, value in params.items()}, folder / PARAMS)
    export.write_tokenizer(data, folder)
    write_json(folder / "inputs.json", {name: f"int32 [batch, {sizes[name]}]" for name in spec})
    loaded = jax_export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
    rows = input_rows(model, student.tokenizer, pairs, student.input_spec)
    inputs = {
        name: jnp.asarray(
            pad(
                rows[name], max(map(len, rows[name])), student.tokenizer.pad_token_id if array.is_token else 0, np.int32
            )
        )
        for name, array in spec.items()
    }
    outputs = {name: np.asarray(value) for name, value in jax.jit(loaded.call)(params, inputs).items()}
    for name in ("label_logits", "verdict_logits"):
        if name in outputs:
            outputs[name] = outputs[name] - outputs[name].mean(axis=-1, keepdims=True)
    if model.embeds and outputs["query_embedding"].ndim == 3:
        del outputs["query_embedding"], outputs["item_embedding"]  # of another padding than the student's
    usage = (
        "import jax",
        "from safetensors.numpy import load_file",
        "",
        f'program = jax.export.deserialize(bytearray(open("THIS_FOLDER/{PROGRAM}", "rb").read()))',
        f'params = load_file("THIS_FOLDER/{PARAMS}")',
        "outputs = jax.jit(program.call)(params, inputs)  # inputs.json names them: token ids, types, and 1 for tokens",
    )
    version = f"Written by jax {jax.__version__}; later releases read it for six months."
    return export.Written(outputs, "logits", usage, (version,))

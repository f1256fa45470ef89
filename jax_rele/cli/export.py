"""export: the students and the fine-tuned teacher for other programs."""

from __future__ import annotations

from pathlib import Path

from jax_rele import extras
from jax_rele.errors import UserError
from jax_rele.io import check_output_folder
from jax_rele.models import save_peft, to_hf
from jax_rele.models.bundled import BUNDLED
from jax_rele.models.files import HUB
from jax_rele.models.gguf import GGUF
from jax_rele.models.weights import weights_folder
from jax_rele.runs import layout, load
from jax_rele.runs.load import read_run
from jax_rele.training import make_mesh


def export(
    run_dir: Path,
    output: Path,
    model: str,
    *,
    recipe: str | None = None,
    form: str | None = None,
    int8: str = "",
    labels: bool = False,
    adapters: bool = False,
) -> None:
    """Writes a model of a run, see `export_teacher` and `jax_rele.deployment.export_student`.

    Raises:
      UserError: options of another model.
    """
    check_output_folder(output)
    if model == "teacher":
        options = {"--recipe": recipe, "--format": form, "--int8": int8, "--labels": labels}
        for option, value in options.items():
            if value:
                raise UserError(
                    f"{option}: is for --model cross_encoder and two_tower; the teacher is written for transformers"
                )
        return export_teacher(run_dir, output, adapters=adapters)
    if adapters:
        raise UserError("--adapters: is for the teacher; a student has none")
    extras.require("deploy", "exports", "onnx", "onnxruntime")
    from jax_rele.deployment import export_student

    form = form or "onnx"
    parity = export_student(run_dir, output, model, recipe=recipe, form=form, labels=labels, int8=int8)
    differences = parity["largest_difference"]
    assert isinstance(differences, dict)
    largest = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    print(
        f"{output}: the {model} in the format {form}; largest differences from JAX on {parity['pairs']} pairs: "
        f"{largest}"
    )
    for name, value in parity.get("int8", {}).items():  # type: ignore[attr-defined]  # a dict
        print(f"  int8 against float32: {name} {value if isinstance(value, list) else round(value, 4)}")


def export_teacher(run_dir: Path, output: Path, *, adapters: bool = False) -> None:
    """Writes the teacher of a run in the Hugging Face form, for torch or a serving engine.

    Args:
      run_dir: folder of a run whose teacher is fine-tuned.
      output: folder to write; it must not exist or be empty.
      adapters: write the adapters alone, in PEFT's form, instead of the whole model, with them merged, and its
        tokenizer.

    Raises:
      UserError: an unfinished run, or a folder that is not empty.
    """
    config = read_run(run_dir)
    if config.score.signals:
        raise UserError(f"{run_dir}: the run has no teacher to export: it learned from the signals of another one")
    if config.teacher.quantize != "none":
        # Adapters are merged into, and belong to, the weights as they were before they were quantized.
        teacher = config.teacher.model_copy(update={"quantize": "none"})
        config = config.model_copy(update={"teacher": teacher})
    mesh = make_mesh(config.mesh)
    model, _ = load.teacher_model(config, run_dir)
    variables, own = load.load_lora(config, model, run_dir, mesh), config.teacher.init == "random"
    if adapters:
        named = config.teacher.init.removeprefix(HUB)
        # PEFT knows the hub's names and folders.
        base = str(weights_folder(config.teacher.init, "teacher.init")) if named.startswith((BUNDLED, GGUF)) else named
        save_peft(model, variables, output, base=None if own else base)
        print(f"{output}: the teacher's adapters")
    else:
        variables |= load.load_base(config, model, run_dir, mesh)
        source = run_dir / layout.TEACHER_TOKENIZER if own else weights_folder(config.teacher.init, "teacher.init")
        to_hf(model, variables, output, source=source)
        print(f"{output}: the teacher's weights, adapters merged, and its tokenizer")

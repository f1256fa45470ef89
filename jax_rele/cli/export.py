"""export: the fine-tuned teacher for other programs."""

from __future__ import annotations

from pathlib import Path

from jax_rele.errors import UserError
from jax_rele.models import save_peft, to_hf
from jax_rele.models.bundled import BUNDLED
from jax_rele.models.files import HUB
from jax_rele.models.gguf import GGUF
from jax_rele.models.weights import weights_folder
from jax_rele.runs import layout, load
from jax_rele.runs.load import read_run
from jax_rele.training import make_mesh


def export(run_dir: Path, output: Path, *, adapters: bool = False) -> None:
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
    variables, own = load.load_lora(model, run_dir, mesh), config.teacher.init == "random"
    if adapters:
        named = config.teacher.init.removeprefix(HUB)
        # PEFT knows the hub's names and folders.
        base = str(weights_folder(config.teacher.init)) if named.startswith((BUNDLED, GGUF)) else named
        save_peft(model, variables, output, base=None if own else base)
        print(f"{output}: the teacher's adapters")
    else:
        variables |= load.load_base(config, model, run_dir, mesh)
        source = run_dir / layout.TEACHER_TOKENIZER if own else weights_folder(config.teacher.init)
        to_hf(model, variables, output, source=source)
        print(f"{output}: the teacher's weights, adapters merged, and its tokenizer")

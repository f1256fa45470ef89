"""The files of a run: what stages write for one another.

prepare/   pairs.parquet  unlabelled.parquet  quarantine.parquet
annotate/  rationales.parquet  quality.json; of chat models votes.parquet  decisions.parquet  review.csv  report.html
adapt/     tokenizer/  base/                       finetune/  lora/
prefer/    shards/*.jsonl  preferences.jsonl  references.parquet  lora/
reinforce/ iteration_N/: answers/*.json  figures.json  lora/ (the last one's); rewards.md  lora/
score/     shards/*.parquet  signals.parquet  held_out.parquet (of another teacher)
distill/   tokenizer/  STUDENT/RECIPE/variables/
evaluate/  metrics.json  predictions.parquet  rationales.parquet  report.html  table.md
compare/   comparison.json  comparison.md  comparison.html  figures/  STUDENT/RECIPE/PAIRS/seed_N/  teacher/
           K_folds/ (of a cross-validation: the first four again, and a run for each fold, fold_1/ to fold_K/)
tune/      STUDENT/RECIPE/: tune.json  tune.md  best.yaml  study.log  tokenizer/  trials/TRIAL/seed_N/

Each stage's folder has a manifest.json, and each training metrics.jsonl, tensorboard/ and, until it ends, checkpoints/.
"""

from __future__ import annotations

from pathlib import Path

from jax_rele.config import Config
from jax_rele.data import RATIONALES as TABLE
from jax_rele.data import PairTable, read_signals, read_table
from jax_rele.errors import UserError
from jax_rele.rationale import ParseError, parse
from jax_rele.types import Pair, Rationale, Signals

PAIRS = "prepare/pairs.parquet"
UNLABELLED = "prepare/unlabelled.parquet"
QUARANTINE = "prepare/quarantine.parquet"
STUDENT_TOKENIZER = "distill/tokenizer"
RATIONALES = "annotate/rationales.parquet"
QUALITY = "annotate/quality.json"
DECISIONS = "annotate/decisions.parquet"
VOTES = "annotate/votes.parquet"
TEACHER_TOKENIZER = "adapt/tokenizer"
BASE = "adapt/base"
LORA = "finetune/lora"
PREFERENCES = "prefer/preferences.jsonl"
REFERENCES = "prefer/references.parquet"
PREFERRED_LORA = "prefer/lora"
REINFORCED_LORA = "reinforce/lora"
SIGNALS = "score/signals.parquet"
HELD_OUT = "score/held_out.parquet"
METRICS = "evaluate/metrics.json"
REPORT = "evaluate/report.html"


def lora(config: Config) -> str:
    """The folder of the teacher's adapters."""
    if config.reinforce.enabled:
        return REINFORCED_LORA
    return PREFERRED_LORA if config.prefer.enabled else LORA


def load_pairs(run_dir: Path, split: str) -> list[Pair]:
    """The labelled pairs of a split."""
    return [pair for pair in PairTable(run_dir / PAIRS) if pair.split == split and pair.label is not None]


def load_rationales(run_dir: Path) -> dict[str, Rationale]:
    """The annotator's rationales by `pair_id`."""
    path = run_dir / RATIONALES
    try:
        return {row["pair_id"]: parse(row["text"]) for row in read_table(path, TABLE).to_pylist()}
    except ParseError as error:
        raise UserError(f"{path}: damaged rationale ({error}); delete the folder {path.parent} and run again") from None


def load_held_out(config: Config, run_dir: Path) -> Signals | None:
    """Another teacher's signals for validation and test pairs; None where there are none."""
    if not (run_dir / HELD_OUT).exists():
        return None
    return read_signals(run_dir / HELD_OUT, config.labels.names, config.rationale.dimensions)


def student_dir(run_dir: Path, student: str, recipe_name: str) -> Path:
    """The folder of a student that `distill` trained."""
    return run_dir / "distill" / student / recipe_name

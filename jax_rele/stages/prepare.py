"""prepare: read and check the pairs, split them by query, cross them into unlabelled pairs, train the tokenizers."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from jax_rele.config import Config
from jax_rele.data import (
    assign_splits,
    check_quarantine,
    cross,
    read_pairs,
    source_files,
    write_pairs,
    write_quarantine,
)
from jax_rele.data.tokenizer import load_tokenizer, train_tokenizer
from jax_rele.errors import UserError
from jax_rele.inference import check_words
from jax_rele.models.weights import NEEDED, SIDE_FILES
from jax_rele.rationale import grammar, render
from jax_rele.stages import artefacts
from jax_rele.stages.students import encoder_folder
from jax_rele.types import VERDICTS, Comparison, Pair, Rationale

NEEDS = ()
READS = (
    "seed",
    "labels",
    "data",
    "rationale.dimensions",
    "teacher.init",
    "teacher.random.vocab_size",
    "student.init",
    "student.random.vocab_size",
)


def external_inputs(config: Config) -> dict[str, str]:
    """A hash of the content of the data files, and of the weights that teacher and students start from."""
    digest = hashlib.sha256()
    for file in source_files(config.data.path):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    inputs = {f"data.path {config.data.path}": digest.hexdigest()[:16]}
    if config.teacher.init != "random":
        inputs[f"teacher.init {config.teacher.init}"] = _folder_hash(artefacts.base_folder(config))
    if config.student.init != "random":
        inputs[f"student.init {config.student.init}"] = _folder_hash(encoder_folder(config))
    return inputs


def _folder_hash(folder: Path, ends: int = 1 << 20) -> str:
    """Of names, sizes and both ends of what is read: weights are too large to be read whole at every start."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in (*NEEDED, *SIDE_FILES) for file in folder.glob(pattern)}):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(ends))
            stream.seek(max(size - ends, 0))
            digest.update(stream.read(ends))
    return digest.hexdigest()[:16]


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Writes the pairs with their splits, the unlabelled pairs, the quarantine and the tokenizers."""
    data, labels = config.data, config.labels
    pairs, bad = read_pairs(data.path, label_names=labels.names, fields=data.fields, label_map=labels.written_as)
    check_quarantine(len(pairs), bad, data.max_bad_share, data.path)
    splits = data.splits
    pairs = assign_splits(pairs, (splits.train, splits.validation, splits.test), config.seed)
    train = [pair for pair in pairs if pair.split == "train"]
    labelled = [pair for pair in pairs if pair.label is not None]
    for split in ("train", "validation", "test"):
        if not any(pair.split == split for pair in labelled):
            raise UserError(
                f"{data.path}: no labelled pair falls into the {split} split; change data.splits or add pairs"
            )
    unlabelled = [pair for pair in train if pair.label is None]
    unlabelled += cross(
        train,
        [pair.item for pair in train],
        data.crossed_per_query,
        config.seed,
        lexical_share=data.crossed_lexical_share,
    )

    fields = data.item_fields
    texts = [grammar.prompt(pair, fields) for pair in train] + _grammar_texts(config, len(train))
    if config.teacher.init == "random":
        teacher_tokenizer = train_tokenizer(texts, config.teacher.random.vocab_size)
    else:
        teacher_tokenizer = load_tokenizer(artefacts.base_folder(config), artefacts.DECODER_TOKENS)
    check_words(teacher_tokenizer, labels.names)
    if config.student.init == "random":
        student_tokenizer = train_tokenizer(_plain_texts(train, fields), config.student.random.vocab_size, encoder=True)
    else:
        student_tokenizer = load_tokenizer(encoder_folder(config), artefacts.ENCODER_TOKENS)

    # Everything has been read and checked: from here on things are written.
    write_quarantine(run_dir / artefacts.QUARANTINE, bad)
    write_pairs(run_dir / artefacts.PAIRS, pairs)
    write_pairs(run_dir / artefacts.UNLABELLED, unlabelled)
    teacher_tokenizer.save_pretrained(run_dir / artefacts.TEACHER_TOKENIZER)
    student_tokenizer.save_pretrained(run_dir / artefacts.STUDENT_TOKENIZER)
    by_split = Counter(pair.split for pair in labelled)
    return {
        "pairs": {split: by_split[split] for split in ("train", "validation", "test")},
        "unlabelled": len(unlabelled),
        "quarantined": len(bad),
    }


def _plain_texts(pairs: list[Pair], fields: tuple[str, ...]) -> list[str]:
    return [pair.query for pair in pairs] + [text for pair in pairs for _, text in pair.item.texts(fields)]


def _grammar_texts(config: Config, count: int) -> list[str]:
    """Rationales without values, often enough that the grammar's own words become tokens of their own."""
    dimensions, labels = config.rationale.dimensions, config.labels.names
    texts = [
        render(Rationale(tuple(Comparison(dimension, verdict=verdict) for dimension in dimensions), label))
        for verdict in VERDICTS
        for label in labels
    ]
    return texts * max(1, -(-2 * count // len(texts)))

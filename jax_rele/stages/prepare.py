"""prepare: read and check the pairs, split them by query, make unlabelled candidates, train the tokenizers."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.config import Config
from jax_rele.data import PairTable, candidates, ingest, new_files, source_hash, write_pairs
from jax_rele.data.tokens.tokenizers import DECODER_TOKENS, ENCODER_TOKENS, load_tokenizer, train_tokenizer
from jax_rele.errors import UserError
from jax_rele.models.weights import NEEDED, SIDE_FILES, weights_folder
from jax_rele.names import SPLITS
from jax_rele.rationale import grammar, render
from jax_rele.runs import layout
from jax_rele.teacher import check_verbalizers
from jax_rele.types import VERDICTS, Comparison, Item, Pair, Rationale

TOKENIZER_PAIRS = 200_000
"""Training pairs that tokenizers are trained on: the merges of a vocabulary of some thousands need no more."""


def external_inputs(config: Config) -> dict[str, str]:
    """A hash of the content of the data, and of the weights that teacher and students start from."""
    inputs = {f"data.path {config.data.path}": source_hash(config.data)}
    if config.teacher.init != "random":
        inputs[f"teacher.init {config.teacher.init}"] = _folder_hash(weights_folder(config.teacher.init))
    if config.student.init != "random":
        inputs[f"student.init {config.student.init}"] = _folder_hash(weights_folder(config.student.init))
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


def run(config: Config, run_dir: Path) -> Mapping[str, object]:
    """Writes the pairs with their splits, the unlabelled pairs, the quarantine and the tokenizers.

    Memory holds a few numbers per row of the data; and, where `data.candidates` asks for pairs, the distinct queries
    and items of the training split.
    """
    data, labels, folder = config.data, config.labels, (run_dir / layout.PAIRS).parent
    # What is written becomes the stage's only when all of it is there: nothing of a run that fails stays.
    with new_files(folder) as new_folder:
        ingested = ingest(data, labels, config.seed, config.cache, new_folder)
        in_train = ingested.splits == SPLITS.index("train")
        labelled = {split: int((ingested.labelled & (ingested.splits == i)).sum()) for i, split in enumerate(SPLITS)}
        for split, count in labelled.items():
            if not count:
                raise UserError(
                    f"{data.path}: no labelled pair falls into the {split} split; change data.splits or add pairs"
                )
        train = ingested.pairs.select(in_train)
        crossed = _candidates(config, train) if data.candidates.per_query else []
        unlabelled = ingested.pairs.select(in_train & ~ingested.labelled)
        write_pairs(new_folder / Path(layout.UNLABELLED).name, chain(unlabelled, crossed))

        teacher_tokenizer, student_tokenizer = _tokenizers(config, _sample(train))
        teacher_tokenizer.save_pretrained(new_folder / Path(layout.TEACHER_TOKENIZER).name)
        student_tokenizer.save_pretrained(new_folder / Path(layout.STUDENT_TOKENIZER).name)
    return {"pairs": labelled, "unlabelled": len(unlabelled) + len(crossed), **ingested.counts}


def _candidates(config: Config, train: PairTable) -> list[Pair]:
    """Unlabelled pairs within each locale: a shopper is shown the items of one."""
    options = config.data.candidates
    by_locale: dict[str, list[Pair]] = defaultdict(list)
    for pair in _judged(train):
        by_locale[pair.locale].append(pair)
    crossed: dict[str, Pair] = {}
    for _, judged in sorted(by_locale.items()):
        items = list({id(pair.item): pair.item for pair in judged}.values())
        of_locale = candidates(
            judged,
            items,
            options.per_query,
            config.seed,
            bm25=options.bm25,
            same_category=options.same_category,
            same_brand=options.same_brand,
        )
        for pair in of_locale:  # one text may be a query in two locales
            crossed.setdefault(pair.pair_id, pair)
    return list(crossed.values())


def _judged(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs; equal texts and items are one object."""
    queries: dict[str, str] = {}
    items: dict[Item, Item] = {}
    return [
        replace(pair, query=queries.setdefault(pair.query, pair.query), item=items.setdefault(pair.item, pair.item))
        for pair in pairs
    ]


def _sample(pairs: PairTable) -> PairTable:
    """At most `TOKENIZER_PAIRS` of the pairs, evenly spaced."""
    count = min(len(pairs), TOKENIZER_PAIRS)
    return pairs.select(np.arange(count) * len(pairs) // count)


def _tokenizers(config: Config, train: PairTable) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """The tokenizers of teacher and students: trained on the pairs, or those of the weights that they start from."""
    fields = config.data.item_fields
    if config.teacher.init == "random":
        prompts = (grammar.prompt(pair, fields) for pair in train)
        texts = chain(prompts, _grammar_texts(config, len(train)))
        teacher: PreTrainedTokenizerBase = train_tokenizer(texts, config.teacher.random.vocab_size)
    else:
        teacher = load_tokenizer(weights_folder(config.teacher.init), DECODER_TOKENS)
    check_verbalizers(teacher, config.labels.names)
    if config.student.init == "random":
        student: PreTrainedTokenizerBase = train_tokenizer(
            _plain_texts(train, fields), config.student.random.vocab_size, encoder=True
        )
    else:
        student = load_tokenizer(weights_folder(config.student.init), ENCODER_TOKENS)
    return teacher, student


def _plain_texts(pairs: PairTable, fields: tuple[str, ...]) -> Iterator[str]:
    for pair in pairs:
        yield pair.query
        yield from (text for _, text in pair.item.texts(fields))


def _grammar_texts(config: Config, count: int) -> list[str]:
    """Rationales without values, often enough that the grammar's own words become tokens of their own."""
    dimensions, labels = config.rationale.dimensions, config.labels.names
    texts = [
        render(Rationale(tuple(Comparison(dimension, verdict=verdict) for dimension in dimensions), label))
        for verdict in VERDICTS
        for label in labels
    ]
    return texts * max(1, -(-2 * count // len(texts)))

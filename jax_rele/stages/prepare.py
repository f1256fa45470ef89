"""prepare: read and check the pairs, split them by query, make unlabelled candidates, train the teacher's tokenizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from jax_rele.config import Config
from jax_rele.data import PairTable, candidates, ingest, new_files, source_hash, write_pairs
from jax_rele.data.tokens.tokenizers import DECODER_TOKENS, load_tokenizer, sample_pairs, train_tokenizer
from jax_rele.errors import UserError
from jax_rele.models.weights import weights_folder, weights_hash
from jax_rele.names import SPLITS
from jax_rele.rationale import grammar, render
from jax_rele.runs import layout
from jax_rele.teacher import check_verbalizers
from jax_rele.types import VERDICTS, Comparison, Item, Pair, Rationale


def external_inputs(config: Config) -> dict[str, str]:
    """A hash of the content of the data, and of the weights that the teacher starts from."""
    inputs = {f"data.path {config.data.path}": source_hash(config.data)}
    if config.teacher.init != "random":
        inputs[f"teacher.init {config.teacher.init}"] = weights_hash(config.teacher.init)
    return inputs


def run(config: Config, run_dir: Path) -> Mapping[str, object]:
    """Writes the pairs with their splits, the unlabelled pairs, the quarantine and the teacher's tokenizer.

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
                remedy = "change data.splits" if data.splits.fold is None else "ask for fewer folds"
                raise UserError(f"{data.path}: no labelled pair falls into the {split} split; {remedy} or add pairs")
        train = ingested.pairs.select(in_train)
        crossed = _candidates(config, train) if data.candidates.per_query else []
        unlabelled = ingested.pairs.select(in_train & ~ingested.labelled)
        write_pairs(new_folder / Path(layout.UNLABELLED).name, chain(unlabelled, crossed))

        tokenizer = _teacher_tokenizer(config, sample_pairs(train))
        tokenizer.save_pretrained(new_folder / Path(layout.TEACHER_TOKENIZER).name)
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


def _teacher_tokenizer(config: Config, train: PairTable) -> PreTrainedTokenizerBase:
    """The teacher's tokenizer: trained on the pairs, or that of the weights that it starts from."""
    if config.teacher.init == "random":
        prompts = (grammar.prompt(pair, config.data.item_fields) for pair in train)
        texts = chain(prompts, _grammar_texts(config, len(train)))
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(texts, config.teacher.random.vocab_size)
    else:
        tokenizer = load_tokenizer(weights_folder(config.teacher.init), DECODER_TOKENS)
    check_verbalizers(tokenizer, config.labels.names)
    return tokenizer


def _grammar_texts(config: Config, count: int) -> list[str]:
    """Rationales without values, often enough that the grammar's own words become tokens of their own."""
    dimensions, labels = config.rationale.dimensions, config.labels.names
    texts = [
        render(Rationale(tuple(Comparison(dimension, verdict=verdict) for dimension in dimensions), label))
        for verdict in VERDICTS
        for label in labels
    ]
    return texts * max(1, -(-2 * count // len(texts)))

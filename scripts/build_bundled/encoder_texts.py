"""The training data of the bundled encoder: texts of products and queries, and pairs with the annotations of rules."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import tokenizers
from corpus import DEMO, Corpus
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from jax_rele import config
from jax_rele.data import candidates, recombine
from jax_rele.data.tokens.evidence_tags import evidence_rows
from jax_rele.data.tokens.packing import pad
from jax_rele.data.tokens.student_inputs import cross_rows
from jax_rele.rationale import RuleAnnotator, find_evidence
from jax_rele.rationale.words import key, words
from jax_rele.types import VERDICTS, Item, Pair

FIELDS = config.load(DEMO).data.item_fields
DIMENSIONS = tuple(config.load(DEMO).rationale.dimensions)

QUERY_LENGTH, ITEM_LENGTH, TEXT_LENGTH = 24, 72, 64
"""Most tokens of a pair's query and item, with the markers, and of a single text."""

PAD, UNKNOWN, CLS, SEP = "[PAD]", "[UNK]", "[CLS]", "[SEP]"

ALPHABET = 200
"""Number of the most frequent letters, which get tokens of their own."""

MIN_WORDS, MAX_WORDS = 3, 40
"""Words of a piece of prose."""

QUERY_SIDE, ITEM_SIDE = 0, 1
"""Token types of a single text, those of the two-tower."""

MARKER, QUERY_WORD, ITEM_WORD = 0, 1, 2
"""Side of the word that a token of a pair belongs to."""


def item_text(item: Item) -> str:
    """The texts of an item in the form that students read."""
    return " ".join(text for _, text in item.texts(FIELDS))


def overlap(pair: Pair) -> float:
    """The fraction of the query's distinct words that the item has."""
    asked, stated = ({word.norm for word in words(text)} for text in (pair.query, item_text(pair.item)))
    return len(asked & stated) / max(1, len(asked))


def catalogue(pairs: Iterable[Pair]) -> list[Item]:
    """The items of pairs, each once."""
    return list({pair.item.id: pair.item for pair in pairs if pair.item.title}.values())


def prose(item: Item) -> Iterator[str]:
    """The bullets and the description of an item in pieces like sentences."""
    for field in (item.bullets, item.description):
        plain = re.sub(r"<[^>]*>|&\w+;", " ", field)
        for piece in re.split(r"(?<=[.!?])\s+|[\n•;]+", plain):
            piece_words = piece.split()
            for start in range(0, len(piece_words), MAX_WORDS):
                if len(part := piece_words[start : start + MAX_WORDS]) >= MIN_WORDS:
                    yield " ".join(part)


@dataclass(frozen=True)
class Material:
    """Training texts and pairs.

    Attributes:
      texts: text -> side, including all queries and items of the pairs.
      pairs: judged, crossed and recombined pairs.
      annotator: fitted on the training pairs.
      held_out_pairs: crossed pairs of queries and items that are held out.
    """

    texts: dict[str, int]
    pairs: list[Pair]
    annotator: RuleAnnotator
    held_out_pairs: list[Pair]


def gather(corpus: Corpus, *, crossed: int, recombined: int, held_out: int, seed: int) -> Material:
    """The training data of a corpus; none of its texts is a held-out query.

    Args:
      corpus: training and held-out data.
      crossed: pairs of each query with items that are not judged for it.
      recombined: number of synthetic pairs.
      held_out: most crossed pairs to measure on.
      seed: of the sampling.
    """
    settings = config.load(DEMO).rationale
    judged, asked = corpus.judged, [*corpus.judged, *corpus.queries]
    # Most of them share words with the query, because random items are easy negatives.
    met = candidates(asked, catalogue(judged), crossed, seed, bm25=0.6, same_brand=0.1)
    pairs = [*judged, *met]
    pairs += recombine(pairs, recombined, seed)
    pairs = corpus.allowed(pairs)
    texts = {item_text(pair.item): ITEM_SIDE for pair in pairs}
    for item in catalogue(judged):
        texts |= dict.fromkeys([item.title, *prose(item)], ITEM_SIDE)
    texts |= dict.fromkeys([pair.query for pair in pairs], QUERY_SIDE)
    measured = [*corpus.held_out, *corpus.held_out_queries]
    apart = candidates(measured, catalogue(corpus.held_out), 2, seed, bm25=0.5)
    random.Random(seed).shuffle(apart)
    return Material(
        texts={text: side for text, side in texts.items() if key(text) not in corpus.apart},
        pairs=pairs,
        annotator=RuleAnnotator.fit(asked, settings.dimensions, settings.tag_map),
        held_out_pairs=apart[:held_out],
    )


def prefixed(name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays with a prefix before their names."""
    return {f"{name}_{key}": value for key, value in arrays.items()}


def train_word_piece(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Writes a lower-casing WordPiece tokenizer of BERT's form, `[CLS] A [SEP] B [SEP]`, trained on texts."""
    normalizer, texts = normalizers.BertNormalizer(lowercase=True), list(texts)
    letters = Counter(letter for text in texts for letter in normalizer.normalize_str(text) if not letter.isspace())
    alphabet = sorted(sorted(letters), key=lambda letter: -letters[letter])[:ALPHABET]
    learner = _word_piece(models.WordPiece(unk_token=UNKNOWN), normalizer)
    # The trainer breaks ties by ids, which follow the order of its input: letters get their ids first.
    pieces = [PAD, UNKNOWN, CLS, SEP, *alphabet, *[f"##{letter}" for letter in alphabet]]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=pieces,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    tokenizer = _word_piece(models.WordPiece(learner.get_vocab(), unk_token=UNKNOWN), normalizer)
    tokenizer.add_special_tokens([PAD, UNKNOWN, CLS, SEP])
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (CLS, SEP)],
    )
    # Texts are untrusted: `[SEP]` in a title is not a marker.
    tokenizer.encode_special_tokens = True
    saved = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=CLS,
        sep_token=SEP,
        do_lower_case=True,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    saved.save_pretrained(folder)
    # `to_hf` reads the id from this file.
    (folder / "config.json").write_text(json.dumps({"pad_token_id": tokenizer.token_to_id(PAD)}), "utf-8")


def _word_piece(model: models.WordPiece, normalizer: normalizers.Normalizer) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    return tokenizer


def text_arrays(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], sides: Sequence[int]
) -> dict[str, np.ndarray]:
    """Single texts: `tokens` [N, TEXT_LENGTH] int32, `sides` and `lengths` [N]."""
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    rows = [[tokenizer.cls_token_id, *row[: TEXT_LENGTH - 2], tokenizer.sep_token_id] for row in ids]
    return {
        "tokens": pad(rows, TEXT_LENGTH, tokenizer.pad_token_id),
        "sides": np.asarray(sides, np.int32),
        "lengths": np.array([len(row) for row in rows], np.int32),
    }


def pair_arrays(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], annotator: RuleAnnotator
) -> dict[str, np.ndarray]:
    """Pairs in the form of the cross-encoder, with the annotations of rules.

    Returns:
      `tokens` [N, L] int32, `types` [N, L], `lengths` [N]; `verdicts` [N, D], indices of `VERDICTS`; `asked` [N, D]
      bool, whether the query asks for the dimension; `evidence` [N, L], tags of `encode_evidence`; `occurs` [N, L],
      1 for a token whose word occurs on the other side too; `owners` [N, L], the side of a token's word. Arrays without
      a dtype are int8.
    """
    rows, types = cross_rows(tokenizer, pairs, FIELDS, QUERY_LENGTH, ITEM_LENGTH)
    rationales = annotator.annotate(pairs)
    compared = [[c for name in DIMENSIONS for c in r.comparisons if c.dimension == name] for r in rationales]
    spans = [find_evidence(pair, rationale, FIELDS) for pair, rationale in zip(pairs, rationales)]
    lengths = QUERY_LENGTH, ITEM_LENGTH
    parts = range(0, len(pairs), 4096)
    evidence = [
        evidence_rows(tokenizer, pairs[i : i + 4096], spans[i : i + 4096], DIMENSIONS, FIELDS, *lengths)[0]
        for i in parts
    ]
    occurs, owners = occurrences(tokenizer, pairs)
    length = sum(lengths)
    return {
        "tokens": pad(rows, length, tokenizer.pad_token_id),
        "types": pad(types, length, 0, np.int8),
        "lengths": np.array([len(row) for row in rows], np.int32),
        "verdicts": np.array([[VERDICTS.index(c.verdict) for c in row] for row in compared], np.int8),
        "asked": np.array([[bool(c.query_values) for c in row] for row in compared], bool),
        "evidence": np.concatenate([pad(tags, length, 0) for tags in evidence]).astype(np.int8),
        "occurs": pad(occurs, length, 0, np.int8),
        "owners": pad(owners, length, MARKER, np.int8),
    }


def occurrences(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> tuple[list[list[int]], list[list[int]]]:
    """For each token of `[CLS] query [SEP] item [SEP]`, whether its word occurs on the other side, and its side.

    Words are compared by their normal forms (`jax_rele.rationale.words`); words that are cut off do not count.
    """
    whole = list(dict.fromkeys(text for pair in pairs for text in (pair.query, item_text(pair.item))))
    offsets = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    word_of = {text: _word_of_tokens(text, token_offsets) for text, token_offsets in zip(whole, offsets)}
    occurs, owners = [], []
    for pair in pairs:
        query = word_of[pair.query][: QUERY_LENGTH - 2]
        item = word_of[item_text(pair.item)][: ITEM_LENGTH - 1]
        both = {*query} & {*item} - {""}
        occurs.append([0, *[word in both for word in query], 0, *[word in both for word in item], 0])
        of_query = [QUERY_WORD if word else MARKER for word in query]
        owners.append([MARKER, *of_query, MARKER, *[ITEM_WORD if word else MARKER for word in item], MARKER])
    return occurs, owners


def _word_of_tokens(text: str, offsets: Sequence[tuple[int, int]]) -> list[str]:
    """The normal form of each token's word, "" for none."""
    text_words, index, norms = _words(text), 0, []
    for start, _ in offsets:
        while index < len(text_words) and text_words[index].end <= start:
            index += 1
        inside = index < len(text_words) and text_words[index].start <= start
        norms.append(text_words[index].norm if inside else "")
    return norms


@lru_cache(maxsize=1 << 14)
def _words(text: str):
    return words(text)

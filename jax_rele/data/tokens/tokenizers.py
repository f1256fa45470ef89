"""Byte-level BPE tokenizers trained on a run's own texts, saved in the Hugging Face form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from jax_rele.data.pairs.table import PairTable
from jax_rele.data.rows import one_line
from jax_rele.errors import UserError
from jax_rele.io import refuse_placeholder

PAD, BEGIN, END = "<pad>", "<s>", "</s>"
DECODER_TOKENS, ENCODER_TOKENS = ("eos",), ("pad", "cls", "sep")
"""The special tokens that each kind of model needs of its tokenizer."""
TOKENIZER_PAIRS = 200_000
"""Pairs that a tokenizer is trained on: the merges of a vocabulary of some thousands need no more."""
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""Files of which a tokenizer's folder has at least one."""


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, encoder: bool = False) -> PreTrainedTokenizerBase:
    """Trains a lower-casing byte-level BPE tokenizer: any text has tokens, none is unknown.

    Args:
      texts: what to learn merges from.
      vocab_size: at most this many tokens, of which 256 are bytes and 3 are `<pad>`, `<s>` and `</s>`.
      encoder: for whole texts and pairs, not for texts that are joined and decoded: a text begins as if after a space,
        so that a word is the same token wherever it stands, and is written `<s> text </s>`.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=encoder)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if encoder:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A {END}",
            pair=f"{BEGIN} $A {END} $B:1 {END}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BEGIN, END)],
        )
    # Texts are written by sellers and shoppers: `</s>` in a title is five characters, not the end of the sequence.
    tokenizer.encode_special_tokens = True
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        cls_token=BEGIN,
        eos_token=END,
        sep_token=END,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(path: str | Path, special: Sequence[str]) -> PreTrainedTokenizerBase:
    """Reads a tokenizer folder; special tokens that texts spell out stay text.

    Args:
      path: a folder in the Hugging Face form.
      special: the special tokens that it must have, of `pad`, `bos`, `eos`, `cls`, `sep`. A missing `pad` is replaced
        by `eos`, as is the custom with decoders: padding is masked wherever it stands.

    Raises:
      UserError: the folder is missing or damaged, or has no such token.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such tokenizer folder; run the stage that writes it")
    if not any((path / name).exists() for name in FILES):
        raise UserError(f"{path}: no tokenizer in this folder; it needs one of {', '.join(FILES)}")
    # Which files a tokenizer reads depends on its kind; those of weights are none.
    for file in sorted(path.iterdir()):
        is_text = file.suffix in (".json", ".txt", ".model", ".jinja") and file.is_file()
        if is_text and not file.name.endswith(".index.json"):
            refuse_placeholder(file)
    _check_config(path / "config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, split_special_tokens=True)
    except Exception as error:
        raise UserError(f"{path}: damaged tokenizer, or config.json: {one_line(error)}") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    missing = [name for name in special if getattr(tokenizer, f"{name}_token_id") is None]
    if missing:
        raise UserError(f"{path}: unsuitable tokenizer: it has no {missing[0]} token")
    return tokenizer


def _check_config(path: Path) -> None:
    """Raises UserError for a model's config, which names the kind of its tokenizer, that is no JSON object."""
    if path.is_file():
        try:
            is_object = isinstance(json.loads(path.read_text("utf-8")), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise UserError(f"{path}: not a JSON object; fetch or write it again")


def sample_pairs(pairs: PairTable) -> PairTable:
    """At most `TOKENIZER_PAIRS` of the pairs, evenly spaced."""
    count = min(len(pairs), TOKENIZER_PAIRS)
    return pairs.select(np.arange(count) * len(pairs) // count)

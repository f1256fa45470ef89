"""GGUF files (llama.cpp) as folders in the Hugging Face form, which `from_hf` reads.

A file is converted once, block by block, into a cache beside that of the Hugging Face hub: quantized tensors become
float32, others keep their type. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from huggingface_hub.constants import HF_HOME
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from jax_rele.errors import UserError
from jax_rele.io import hash_bytes, lock, refuse_placeholder
from jax_rele.models.files import BLOCK, Outgoing, one_line, write_folder

GGUF = "gguf:"
"""Prefix of the path of a GGUF file."""

VERSION = 1
"""To be raised when converted folders change."""

ARCHITECTURES = ("llama", "qwen2", "qwen3")

CONFIG_KEYS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
}
"""Metadata under the architecture's name -> keys of a Hugging Face config."""

ROPE_KEYS = {
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.attn_factor": "attention_factor",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
"""Metadata of scaled rotary positions -> keys of `rope_scaling`."""

OTHER_KEYS = ("vocab_size", "rope.dimension_count", "attention.value_length", "rope.scaling.type")
"""Other metadata that is read or checked."""

TENSORS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of a layer's modules -> their names in `transformers`."""

OUTER_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

FLOATS = {"F32": np.float32, "F16": np.float16}

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
PATTERNS = {"gpt-2": _GPT2, "smollm": _GPT2, "qwen2": _QWEN2, "llama-bpe": _LLAMA3, "llama3": _LLAMA3}
"""`tokenizer.ggml.pre` -> the pattern that splits a text into words."""

CONTROL, USER_DEFINED = 3, 4
"""Kinds of tokens that are not split off by merges."""


def folder(source: str) -> Path:
    """The converted folder of `gguf:FILE`; it is made if it is not there.

    Raises:
      UserError: the package `gguf` is missing, or the file is missing, damaged, or not of a supported kind.
    """
    path = Path(source.removeprefix(GGUF))
    gguf = _import_gguf()
    try:
        status = path.stat()
        with path.open("rb") as file:
            head = file.read(1 << 20)
            file.seek(max(status.st_size - (1 << 20), 0))
            tail = file.read()
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}; write gguf:FILE.gguf") from None
    refuse_placeholder(path)
    if head[:4] != b"GGUF":
        raise UserError(f"{source}: not a GGUF file")
    identity = f"{VERSION} {status.st_size} {status.st_mtime_ns} ".encode()
    digest = hash_bytes(identity + head + tail)
    target = Path(HF_HOME) / "jax_rele" / f"{path.stem}-{digest}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock(target.with_suffix(".lock")):
        if not target.is_dir():
            _convert(gguf, source, path, target)
    return target


def _import_gguf() -> ModuleType:
    try:
        import gguf
        import gguf.quants
    except ImportError:
        raise UserError("a GGUF file needs the package gguf: pip install 'jax_rele[gguf]'") from None
    return gguf


def _convert(gguf: ModuleType, source: str, path: Path, target: Path) -> None:
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, KeyError, IndexError, OverflowError, OSError) as error:
        raise UserError(f"{source}: truncated or damaged ({one_line(error)}); fetch it again") from None
    end = max((tensor.data_offset + tensor.n_bytes for tensor in reader.tensors), default=0)
    if end > path.stat().st_size:
        raise UserError(f"{source}: truncated: it has {path.stat().st_size} bytes of {end}; fetch it again")
    if metadata.get("split.count", 0) > 1:
        raise UserError(f"{source}: one of {metadata['split.count']} parts; join them with llama-gguf-split --merge")
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UserError(f"{source}: architecture {architecture!r} is not supported; supported are {ARCHITECTURES}")
    config = _config(source, architecture, metadata, tensors)
    tokenizer = _tokenizer(source, metadata)
    if len(tokenizer) > config["vocab_size"]:
        raise UserError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens, the embedding {config['vocab_size']} rows"
        )
    outgoing = [_outgoing(gguf, source, tensor, config) for tensor in tensors.values()]
    side = target.with_name(f".{target.name}.tokenizer")
    tokenizer.save_pretrained(side)
    try:
        files: dict[str, Any] = {"config.json": config, **{file.name: file for file in side.iterdir()}}
        write_folder(target, files, outgoing)
    finally:
        for file in side.iterdir():
            file.unlink()
        side.rmdir()


def _config(source: str, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The Hugging Face config of a file."""
    own = {
        key.removeprefix(f"{architecture}."): value
        for key, value in metadata.items()
        if key.startswith(f"{architecture}.")
    }
    if unknown := sorted(own.keys() - {*CONFIG_KEYS, *ROPE_KEYS, *OTHER_KEYS}):
        raise UserError(f"{source}: key {architecture}.{unknown[0]} ({own[unknown[0]]!r:.60}) is not supported")
    if missing := [key for key in ("embedding_length", "block_count", "attention.head_count") if key not in own]:
        raise UserError(f"{source}: key {architecture}.{missing[0]} is missing; the file is damaged")
    if "token_embd.weight" not in tensors:
        raise UserError(f"{source}: no tensor token_embd.weight; the file is damaged")
    if "rope_freqs.weight" in tensors:
        raise UserError(f"{source}: rope_freqs.weight (scaled rotary positions of Llama 3.1) is not supported")
    config = {"model_type": architecture, **{name: own[key] for key, name in CONFIG_KEYS.items() if key in own}}
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    config.setdefault("rope_theta", 10_000.0)
    for key in ("rope.dimension_count", "attention.value_length"):
        if own.get(key, config["head_dim"]) != config["head_dim"]:
            raise UserError(f"{source}: key {architecture}.{key} is {own[key]}; supported is {config['head_dim']}")
    if (kind := own.get("rope.scaling.type", "none")) != "none":
        scaling = {name: own[key] for key, name in ROPE_KEYS.items() if key in own}
        config["rope_scaling"] = {"rope_type": kind, **scaling}
    if architecture != "qwen2":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    config["vocab_size"] = int(tensors["token_embd.weight"].shape[-1])
    config["tie_word_embeddings"] = "output.weight" not in tensors
    for name in ("bos", "eos", "pad"):
        key = f"tokenizer.ggml.{'padding' if name == 'pad' else name}_token_id"
        config[f"{name}_token_id"] = metadata.get(key)
    return config


# ---- tensors


def _outgoing(gguf: ModuleType, source: str, tensor: Any, config: Mapping[str, Any]) -> Outgoing:
    """One tensor under its name in `transformers`."""
    name, kind = _hf_name(source, tensor.name), tensor.tensor_type.name
    if kind not in FLOATS and tensor.tensor_type not in gguf.quants._type_traits:
        raise UserError(f"{source}: tensor {tensor.name} is {kind}, which is not supported")
    shape = tuple(int(size) for size in reversed(tensor.shape))
    rows = np.arange(shape[0])
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    if config["model_type"] == "llama" and heads is not None:
        # llama.cpp interleaves the two halves of each head's rotated dimensions.
        rows = rows.reshape(config[heads], -1, 2).swapaxes(1, 2).reshape(-1)
    dtype = np.dtype(FLOATS.get(kind, np.float32))
    return Outgoing(name, shape, dtype, partial(_blocks, gguf, tensor, rows, dtype))


def _hf_name(source: str, name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if stem in OUTER_TENSORS:
        return f"{OUTER_TENSORS[stem]}.{suffix}"
    match stem.split("."):
        case ["blk", layer, module] if module in TENSORS:
            return f"model.layers.{layer}.{TENSORS[module]}.{suffix}"
    raise UserError(f"{source}: tensor {name} is not of a supported model")


def _blocks(gguf: ModuleType, tensor: Any, rows: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The rows in their order, dequantized a block at a time."""
    step = max(1, BLOCK // max(1, 4 * int(tensor.n_elements) // len(rows)))
    for start in range(0, len(rows), step):
        block = np.ascontiguousarray(tensor.data[rows[start : start + step]])
        if tensor.tensor_type.name not in FLOATS:
            block = gguf.quants.dequantize(block, tensor.tensor_type)
        yield np.asarray(block, dtype)


# ---- tokenizer


def _tokenizer(source: str, metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer of a file, with its chat template."""
    own = {
        key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items() if key.startswith("tokenizer.")
    }
    tokens, kind = own.get("tokens"), own.get("model")
    if not tokens:
        raise UserError(f"{source}: has no tokenizer")
    if kind == "gpt2":
        tokenizer = _byte_level(source, own)
    elif kind == "llama":
        tokenizer = _sentence_piece(own)
    else:
        raise UserError(f"{source}: tokenizer {kind!r} is not supported; supported are gpt2 and llama")
    kinds = own.get("token_type", [1] * len(tokens))
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, of in zip(tokens, kinds) if of == CONTROL]
    )
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False) for token, of in zip(tokens, kinds) if of == USER_DEFINED]
    )
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {
        f"{name}_token": tokens[own[f"{key}_token_id"]] for name, key in names.items() if f"{key}_token_id" in own
    }
    if own.get("add_bos_token", kind == "llama") and "bos_token" in special:
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, own["bos_token_id"])]
        )
    template = metadata.get("tokenizer.chat_template")
    options = {"chat_template": template} if template else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special, **options)


def _byte_level(source: str, own: Mapping[str, Any]) -> Tokenizer:
    kind = own.get("pre", "gpt-2")
    if kind not in PATTERNS:
        raise UserError(f"{source}: tokenizer.ggml.pre {kind!r} is not supported; supported are {', '.join(PATTERNS)}")
    merges = [tuple(merge.split(" ", 1)) for merge in own.get("merges", ())]
    vocabulary = {token: index for index, token in enumerate(own["tokens"])}
    ignore_merges = PATTERNS[kind] is _LLAMA3
    tokenizer = Tokenizer(BPE(vocabulary, merges, fuse_unk=False, byte_fallback=False, ignore_merges=ignore_merges))
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERNS[kind]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if kind == "smollm" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(own: Mapping[str, Any]) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(own["tokens"])}
    merges = generate_merges(vocabulary, dict(zip(own["tokens"], own["scores"])))
    unknown = own["tokens"][own.get("unknown_token_id", 0)]
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prepend = [normalizers.Prepend("▁")] if own.get("add_space_prefix", True) else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prepend else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer

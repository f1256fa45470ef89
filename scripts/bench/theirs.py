"""The side of torch, transformers and peft: each case sets up and yields the function to time."""

from __future__ import annotations

import copy as copying
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import peft
import torch
import transformers
from shapes import LABELS, Shape, packed, prompts, score_rows

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def open_side(shape: Shape, device: str, folder: str) -> tuple[str, dict[str, Any]]:
    """The versions and the device of this side, and its cases; weights from `folder`, or random ones where it is ""."""
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    where = torch.device("cuda" if device == "gpu" else "cpu")
    dtype = getattr(torch, shape.dtype)
    if folder:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(where)
    else:
        model_config = transformers.Qwen3Config(
            vocab_size=shape.vocab_size,
            hidden_size=shape.width,
            intermediate_size=shape.mlp_width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            tie_word_embeddings=shape.tied,
        )
        with where:
            model = transformers.AutoModelForCausalLM.from_config(model_config, dtype=dtype)
    model.requires_grad_(False)
    # No row ends early: both sides write the same number of tokens.
    model.generation_config.eos_token_id = None
    about = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}, " + (
        torch.cuda.get_device_name() if device == "gpu" else f"{torch.get_num_threads()} threads"
    )
    cases = {"sft": sft, "naive": naive, "shared": shared, "plain": written, "guided": written}
    return about, {
        "matmul": partial(matmul, shape, where),
        "stream": partial(stream, shape, where),
        **{name: partial(case, shape, model, where) for name, case in cases.items()},
    }


def synchronize(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def matmul(shape: Shape, where: torch.device) -> Iterator[Callable[[], None]]:
    size, times = shape.matmul
    a, b = (torch.randn(size, size, device=where).to(getattr(torch, shape.dtype)) for _ in range(2))

    @torch.inference_mode()
    def run():
        for _ in range(times):
            a @ b
        synchronize(where)

    yield run


@contextmanager
def stream(shape: Shape, where: torch.device) -> Iterator[Callable[[], None]]:
    elements, times = shape.stream
    source = torch.randn(elements, device=where)

    @torch.inference_mode()
    def run():
        for _ in range(times):
            source.mul_(0.999)
        synchronize(where)

    yield run


@contextmanager
def sft(shape: Shape, model: Any, where: torch.device, remat: str) -> Iterator[Callable[[], float]]:
    """A LoRA step as in `transformers.Trainer`: clipping to a norm of 1, AdamW; autocast where bfloat16."""
    lora_config = peft.LoraConfig(r=shape.rank, lora_alpha=2 * shape.rank, target_modules=PROJECTIONS)
    adapted = peft.get_peft_model(model, lora_config)
    adapted.train()
    if remat == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    learns = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    batch = {name: torch.from_numpy(array).to(where) for name, array in packed(shape).items()}
    # transformers shifts the labels itself, and separates packed texts by their positions.
    labels = torch.full_like(batch["tokens"], -100)
    labels[:, 1:] = torch.where(batch["targets_mask"], batch["targets"], -100)[:, :-1]
    inputs = {"input_ids": batch["tokens"].long(), "position_ids": batch["positions"].long(), "labels": labels.long()}
    half = torch.autocast(where.type, torch.bfloat16) if shape.dtype == "bfloat16" else nullcontext()

    def run():
        with half:
            loss = adapted(**inputs, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learns, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    yield run
    if remat == "full":
        model.gradient_checkpointing_disable()
    adapted.unload()
    model.eval()


def label_probs(model: Any, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """[B, C]: softmax over the labels' rows of the output embedding, after each row's last token."""
    last = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    return torch.softmax((last @ model.get_output_embeddings().weight[list(LABELS)].T).float(), dim=-1)


def padded(rows: list[list[int]], where: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, L] tokens and lengths; right padding needs no mask, as attention is causal."""
    lengths = [len(row) for row in rows]
    tokens = [row + [0] * (max(lengths) - len(row)) for row in rows]
    return torch.tensor(tokens, device=where), torch.tensor(lengths, device=where)


@contextmanager
def naive(shape: Shape, model: Any, where: torch.device, items: int) -> Iterator[Callable[[], np.ndarray]]:
    """Every prompt whole, in batches of similar lengths."""
    rows, _ = score_rows(shape, items)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))

    @torch.inference_mode()
    def run():
        results = []
        for start in range(0, len(rows), shape.score_batch):
            tokens, lengths = padded([rows[row] for row in order[start : start + shape.score_batch]], where)
            hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
            results.append(label_probs(model, hidden, lengths))
        probs = np.empty((len(rows), len(LABELS)), np.float32)
        probs[order] = torch.cat(results).cpu().numpy()
        return probs

    yield run


@contextmanager
def shared(shape: Shape, model: Any, where: torch.device, items: int) -> Iterator[Callable[[], np.ndarray]]:
    """The prefixes of a few queries in one pass; then their items, with the prefixes' keys and values repeated."""
    rows, _ = score_rows(shape, items)
    queries = max(1, shape.score_batch // items)
    items_per_pass = min(items, shape.score_batch)

    @torch.inference_mode()
    def run():
        results = []
        for start in range(0, len(rows), queries * items):
            group = rows[start : start + queries * items]
            prefixes = torch.tensor([row[: shape.prefix_length] for row in group[::items]], device=where)
            cache = model.model(input_ids=prefixes, use_cache=True).past_key_values
            for part in range(0, len(group), queries * items_per_pass):
                rests = [row[shape.prefix_length :] for row in group[part : part + queries * items_per_pass]]
                tokens, lengths = padded(rests, where)
                prefix_cache = copying.deepcopy(cache)
                prefix_cache.batch_repeat_interleave(len(rests) // len(prefixes))
                hidden = model.model(input_ids=tokens, past_key_values=prefix_cache, use_cache=True).last_hidden_state
                results.append(label_probs(model, hidden, lengths))
        return torch.cat(results).cpu().numpy()

    yield run


@contextmanager
def written(
    shape: Shape, model: Any, where: torch.device, rows: int, length: int, tokens: int
) -> Iterator[Callable[[], list[list[int]]]]:
    """`tokens` tokens after each of `rows` prompts of `length` tokens, greedily, `decode_batch` prompts at a time."""
    inputs = torch.from_numpy(prompts(shape, rows, length)).long().to(where)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    if where.type == "cuda":
        # With a static cache `generate` compiles the step and replays it as a graph.
        options["cache_implementation"] = "static"

    @torch.inference_mode()
    def run():
        results = []
        for start in range(0, rows, shape.decode_batch):
            part = inputs[start : start + shape.decode_batch]
            generated = model.generate(input_ids=part, attention_mask=torch.ones_like(part), **options)
            results += generated[:, length:].tolist()
        return results

    yield run

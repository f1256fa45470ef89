"""The side of sentence-transformers in the students' benchmark: each case sets up and yields the function to time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import sentence_transformers
import torch
import transformers
from students_work import (
    BETAS,
    CLIP_NORM,
    LABELS,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Batch,
    Work,
    heads,
    read_batches,
    read_pairs,
)
from torch.nn import functional
from worker import peak_memory

UNDECAYED = ("bias", "LayerNorm.weight")


def open_side(work: Work, device: str, folder: str, weights: str) -> tuple[str, dict[str, Any]]:
    """The versions and the device of this side, and its cases by name."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    where = "cuda" if device == "gpu" else "cpu"
    about = f"torch {torch.__version__}, sentence-transformers {sentence_transformers.__version__}, " + (
        torch.cuda.get_device_name() if device == "gpu" else f"{torch.get_num_threads()} threads"
    )
    return about, {
        "predict": partial(predicted, work, folder, weights, where),
        "forward": partial(forward, work, folder, weights, where),
        "train": partial(train, work, folder, weights, where),
        "memory": partial(memory, device),
    }


def student(work: Work, weights: str, where: str, name: str, *, learns: bool, dropout: float = 0.0) -> Any:
    """A `CrossEncoder` with our head's weights, or a `SentenceTransformer` that pools by the mean."""
    options = {
        "device": where,
        "model_kwargs": {"dtype": torch.float32 if learns else getattr(torch, work.dtype)},
        # Our encoder drops no attention weights.
        "config_kwargs": {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": 0.0},
    }
    if name == "two_tower":
        tower = sentence_transformers.SentenceTransformer(weights, **options)
        # Titles that are longer are cut where ours are.
        tower.max_seq_length = work.item_length + 1
        return tower
    model = sentence_transformers.CrossEncoder(weights, num_labels=LABELS, **options)
    classifier = model[0].model.classifier
    head = heads(classifier.in_features)
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(head["kernel"].T.copy()))
        classifier.bias.copy_(torch.from_numpy(head["bias"]))
    return model


def features(batch: Batch, where: str, number: str = "") -> dict[str, torch.Tensor]:
    """A batch in the form of the modules of sentence-transformers."""
    tokens = torch.from_numpy(batch[f"tokens{number}"]).long()
    types = batch.get(f"token_types{number}")
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.from_numpy(batch[f"valid{number}"]).long(),
        "token_type_ids": torch.zeros_like(tokens) if types is None else torch.from_numpy(types).long(),
    }
    return {key: value.to(where) for key, value in inputs.items()}


def embedded(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return functional.normalize(model(dict(inputs))["sentence_embedding"].float(), dim=-1)


@contextmanager
def predicted(work: Work, folder: str, weights: str, where: str, name: str) -> Iterator[Callable[[], np.ndarray]]:
    """From texts to logits [N, C] of the pairs, or to the embeddings [2 N, E] of the queries and then of the titles."""
    pairs, model = read_pairs(folder), student(work, weights, where, name, learns=False)
    options = {"batch_size": work.batch, "show_progress_bar": False}

    def run():
        if name == "cross_encoder":
            return model.predict(pairs, activation_fn=torch.nn.Identity(), **options)
        sides = [list(texts) for texts in zip(*pairs)]
        return np.concatenate([model.encode(texts, normalize_embeddings=True, **options) for texts in sides])

    yield run


@contextmanager
def forward(
    work: Work, folder: str, weights: str, where: str, name: str, kind: str
) -> Iterator[Callable[[], np.ndarray]]:
    """The model alone over prepared batches; rows in the order of `predicted`."""
    batches, model = read_batches(folder, f"{name}.{kind}"), student(work, weights, where, name, learns=False)
    model.eval()
    inputs = [features(batch, "cpu") for batch in batches]
    indices = np.concatenate([batch["indices"] + work.pairs * int(batch["side"]) for batch in batches])

    @torch.inference_mode()
    def run():
        moved = ({key: value.to(where) for key, value in batch.items()} for batch in inputs)
        if name == "cross_encoder":
            results = [model(batch)["scores"].float() for batch in moved]
        else:
            results = [embedded(model, batch) for batch in moved]
        return torch.cat(results).cpu().numpy()[np.argsort(indices)]

    yield run


@contextmanager
def train(
    work: Work, folder: str, weights: str, where: str, name: str, kind: str, dropout: float, times: int
) -> Iterator[Callable[[], list[float]]]:
    """Steps as in its trainer, with clipping and fused AdamW; autocast where activations are bfloat16."""
    model = student(work, weights, where, name, learns=True, dropout=dropout)
    model.train()
    named = dict(model.named_parameters())
    if name == "two_tower":
        # BERT's own pooler is not used.
        named = {key: weight for key, weight in named.items() if ".pooler." not in key}
        head = heads(1)
        for key in ("slope", "slope_bias"):
            named[key] = torch.nn.Parameter(torch.from_numpy(head[key]).to(where))
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for key, weight in named.items():
        groups[not key.endswith(UNDECAYED)].append(weight)
    optimizer = torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": WEIGHT_DECAY},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        betas=BETAS,
        fused=True,
    )
    half = torch.autocast(where, torch.bfloat16) if work.dtype == "bfloat16" else nullcontext()
    batches = [
        ([features(batch, where, str(n)) for n in range(1 if name == "cross_encoder" else 2)],
         torch.from_numpy(batch["labels"]).long().to(where))
        for batch in read_batches(folder, f"{name}.{kind}")
    ]  # fmt: skip

    def logits(sides):
        if name == "cross_encoder":
            return model(dict(sides[0]))["scores"]
        query, item = (embedded(model, side) for side in sides)
        return (query * item).sum(-1, keepdim=True) * named["slope"] + named["slope_bias"]

    def run():
        step_losses = []
        for sides, labels in batches * times:
            with half:
                loss = functional.cross_entropy(logits(sides).float(), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(named.values(), CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step_losses.append(loss.detach())
        return [loss.item() for loss in step_losses]

    yield run


@contextmanager
def memory(device: str) -> Iterator[Callable[[], int]]:
    """Peak bytes of the device, or of the process on the CPU."""
    if device == "gpu":
        yield torch.cuda.max_memory_allocated
    else:
        yield peak_memory

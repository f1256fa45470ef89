"""Losses on preferences, with their gradients, against TRL's own methods, called on stubs of its trainers."""

from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from jax_rele import losses

B, PROMPT, COMPLETION = 6, 3, 9
BETA = 0.3


def trainer(**options):
    """What the methods read of a trainer that runs alone on the CPU."""

    def itself(tensor):
        return tensor

    return SimpleNamespace(
        **{
            "model": SimpleNamespace(training=True),
            "accelerator": SimpleNamespace(
                device=torch.device("cpu"), gather=itself, gather_for_metrics=itself, num_processes=1
            ),
            "aux_loss_enabled": False,
            "precompute_ref_logps": True,
            "ld_alpha": None,
            "f_divergence_type": "reverse_kl",
            "loss_weights": [1.0],
            "label_smoothing": 0.0,
            "use_weighting": False,
            "alpha": 0.0,
            "beta": BETA,
            "_metrics": defaultdict(lambda: defaultdict(list)),
            "_total_train_tokens": 0,
            "_tp_size": 1,
            **options,
        }
    )


def make(seed, texts):
    """Log-probabilities [texts, tokens] of tokens, 0 outside of completions of random lengths; and the lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, COMPLETION + 1, size=texts)
    columns = np.arange(PROMPT + COMPLETION)
    completion = (columns >= PROMPT) & (columns < PROMPT + lengths[:, None])
    tokens = np.where(completion[:, 1:], -rng.gamma(1.0, 1.0, size=(texts, len(columns) - 1)), 0.0)
    return np.float32(tokens), completion.astype(np.int64), lengths.astype(np.int32), rng


def outputs_of(log_probs):
    zeros = torch.zeros_like(log_probs.detach())
    return SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def inputs_of(completion):
    completion = torch.tensor(completion)
    ones = torch.ones_like(completion)
    return {"input_ids": ones, "attention_mask": ones, "completion_mask": completion}


def agree(ours, theirs, array):
    """The loss, and its gradient by every token's log-probability."""
    tokens = torch.tensor(array, requires_grad=True)
    expected = theirs(tokens)
    expected.backward()
    value, gradient = jax.value_and_grad(ours)(jnp.asarray(array))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, tokens.grad, rtol=1e-5, atol=1e-5)


def sides(tokens):
    """Log-probabilities of the chosen and of the rejected texts."""
    return tokens.sum(-1)[:B], tokens.sum(-1)[B:]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo"])
def test_dpo_trainer(name, seed):
    array, completion, lengths, rng = make(seed, 2 * B)
    references = np.float32(-rng.gamma(3.0, 3.0, size=(2, B)))
    options = {"sigmoid": losses.dpo, "hinge": losses.dpo_hinge, "ipo": losses.ipo}
    extra = (lengths[:B], lengths[B:]) if name == "ipo" else ()

    def theirs(tokens):
        batch = inputs_of(completion) | dict(zip(("ref_chosen_logps", "ref_rejected_logps"), torch.tensor(references)))
        return DPOTrainer._compute_loss(trainer(loss_types=[name]), lambda **_: outputs_of(tokens), batch, False)

    def ours(tokens):
        return options[name](*sides(tokens), *references, *extra, beta=BETA).mean()

    agree(ours, theirs, array)


@pytest.mark.parametrize("seed", range(3))
def test_kto_trainer(seed):
    array, completion, _, rng = make(seed, B)
    references, good = np.float32(-rng.gamma(3.0, 3.0, size=B)), rng.permutation(B) < B // 2
    mismatched, reference_mismatched = np.float32(-rng.gamma(3.0, 3.0, size=(2, B)))
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}

    def theirs(tokens):
        batch = inputs_of(completion) | {
            "label": torch.tensor(good),
            "ref_logps": torch.tensor(references),
            "ref_KL_logps": torch.tensor(reference_mismatched),
        }
        stub = trainer(
            loss_type="kto",
            calculate_KL=True,
            _compute_kl_logps=lambda model, batch: torch.tensor(mismatched),
            **weights,
        )
        return KTOTrainer._compute_loss(stub, lambda **_: outputs_of(tokens), batch, False)

    def ours(tokens):
        kl = jnp.full(B, (mismatched - reference_mismatched).mean())
        return losses.kto(tokens.sum(-1), references, good, kl, beta=BETA, **weights).mean()

    agree(ours, theirs, array)


@pytest.mark.parametrize("seed", range(3))
def test_cpo_trainers_simpo(seed):
    array, _, lengths, _ = make(seed, 2 * B)
    stub = trainer(loss_type="simpo", simpo_gamma=0.4)

    def theirs(tokens):
        means = tokens.sum(-1) / torch.tensor(lengths)
        return CPOTrainer.cpo_loss(stub, means[:B], means[B:])[0].mean()

    def ours(tokens):
        return losses.simpo(*sides(tokens), lengths[:B], lengths[B:], beta=BETA, margin=0.4).mean()

    agree(ours, theirs, array)


@pytest.mark.parametrize("seed", range(3))
def test_smoothed_dpo_is_cpo_trainers_of_log_ratios(seed):
    """The trainer of DPO smooths no labels; that of CPO does, and its logits are those of DPO for log-ratios."""
    array, _, _, rng = make(seed, 2 * B)
    references = np.float32(-rng.gamma(3.0, 3.0, size=(2, B)))
    stub = trainer(loss_type="sigmoid", label_smoothing=0.2)

    def theirs(tokens):
        ratios = [side - reference for side, reference in zip(sides(tokens), torch.tensor(references))]
        return CPOTrainer.cpo_loss(stub, *ratios)[0].mean()

    def ours(tokens):
        return losses.dpo(*sides(tokens), *references, beta=BETA, label_smoothing=0.2).mean()

    agree(ours, theirs, array)


@pytest.mark.parametrize("seed", range(3))
def test_orpo_trainer(seed):
    """TRL's likelihood is over prompt and completion and the mean of tokens; here it is a completion's own mean."""
    array, _, lengths, _ = make(seed, 2 * B)

    def theirs(tokens):
        means = tokens.sum(-1) / torch.tensor(lengths)
        return -means[:B].mean() - ORPOTrainer.odds_ratio_loss(trainer(), means[:B], means[B:])[0].mean()

    def ours(tokens):
        return losses.orpo(*sides(tokens), lengths[:B], lengths[B:], beta=BETA).mean()

    agree(ours, theirs, array)

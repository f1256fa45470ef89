"""AdamW with warm-up, from the config."""

from __future__ import annotations

import jax
import optax

from jax_rele.config import OptimizationConfig

UNDECAYED = ("bias", "scale")
"""Leaf names that weight decay leaves alone: norms and biases."""


def learning_rate(config: OptimizationConfig) -> optax.Schedule:
    """Warm-up from 0 to the peak; then a cosine or a line down to a tenth of it at the last step, or no change."""
    peak, last = config.learning_rate, 0.1 * config.learning_rate
    warmup = max(1, round(config.steps * config.warmup_fraction))
    steps = max(config.steps, warmup + 1)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, last)
    fall = optax.linear_schedule(peak, last if config.schedule == "linear" else peak, steps - warmup)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), fall], [warmup])


def _decayed(params):
    def decays(path, _):
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        return not any(name.endswith(UNDECAYED) for name in names)

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(config: OptimizationConfig) -> optax.GradientTransformation:
    """Clipping to a global norm, then AdamW (Loshchilov & Hutter, arXiv 1711.05101)."""
    rate = learning_rate(config)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        # optax counts steps from 0, the schedule from 1: the first step learns too.
        optax.adamw(lambda count: rate(count + 1), b2=0.98, weight_decay=config.weight_decay, mask=_decayed),
    )

"""What is searched: the term weights, temperatures and learning rate of a student's recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from jax_rele.config import DistillConfig, RangeConfig, TuneConfig
from jax_rele.distillation.hyperparameters import Hyperparameters
from jax_rele.errors import UserError
from jax_rele.losses.combine import Schedule, Term

WEIGHT, TEMPERATURE, RATE = "weight.", "temperature.", "learning_rate"
"""A number is called after what it is and its term, e.g. `weight.score`."""

FIXED_WEIGHT = "label"
"""The term whose weight is the unit of the others."""

FACTORS = {WEIGHT: (0.01, 10.0), TEMPERATURE: (0.25, 4.0), RATE: (0.2, 5.0)}
"""Ends of the ranges that the config does not give, as factors of its number. A weight may nearly vanish."""


@dataclass(frozen=True)
class SearchSpace:
    """The numbers that are searched.

    Attributes:
      defaults: name -> the number of the config.
      ranges: name -> (low, high), around it.
      schedules: names of what is not searched since it is a schedule.
    """

    defaults: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]]
    schedules: tuple[str, ...]


def search_space(tune: TuneConfig, terms: Mapping[str, Term], learning_rate: float, recipe: str) -> SearchSpace:
    """Every positive number of the terms and the learning rate, with their ranges.

    Args:
      tune: ranges in place of the usual ones.
      terms: of the recipe, for the student.
      learning_rate: of the config.
      recipe: its name, for messages.

    Raises:
      UserError: a range is of a term or number that there is not, or does not hold the config's number.
    """
    weights = {name: term.weight for name, term in terms.items()}
    temperatures = {name: term.temperature for name, term in terms.items() if term.temperature is not None}
    defaults: dict[str, float] = {}
    configured: dict[str, RangeConfig] = {}
    schedules = []
    for prefix, numbers, section in ((WEIGHT, weights, tune.weights), (TEMPERATURE, temperatures, tune.temperatures)):
        path = f"tune.{prefix.removesuffix('.')}s"
        for name in section:
            if name not in numbers:
                raise UserError(
                    f"{path}.{name}: {recipe} has no term of this name with a {prefix.removesuffix('.')}; there are "
                    f"{', '.join(numbers) or 'none'}"
                )
        for name, number in numbers.items():
            if prefix == WEIGHT and name == FIXED_WEIGHT and name not in section:
                continue
            if not _is_positive(number):
                if name in section:
                    raise UserError(f"{path}.{name}: it is a schedule or not positive, so it has no range; remove it")
                if callable(number):
                    schedules.append(prefix + name)
                continue
            defaults[prefix + name] = float(number)  # type: ignore[arg-type]  # no schedule
            if name in section:
                configured[prefix + name] = section[name]
    defaults[RATE] = learning_rate
    if tune.learning_rate is not None:
        configured[RATE] = tune.learning_rate
    ranges = {name: _range(name, number, configured.get(name)) for name, number in defaults.items()}
    return SearchSpace(defaults, ranges, tuple(schedules))


def _is_positive(number: float | Schedule | None) -> bool:
    return isinstance(number, int | float) and number > 0


def _range(name: str, number: float, configured: RangeConfig | None) -> tuple[float, float]:
    kind, _, term = name.partition(".")
    if configured is None:
        low, high = FACTORS[f"{kind}." if term else kind]
        return low * number, high * number
    if not configured.low <= number <= configured.high:
        path = f"tune.{kind}s.{term}" if term else f"tune.{kind}"
        raise UserError(
            f"{path}: {configured.low:g} to {configured.high:g} does not hold the number of the config, {number:g}, "
            "which is tried first; widen the range or change that number"
        )
    return configured.low, configured.high


def hyperparameters(values: Mapping[str, float]) -> Hyperparameters:
    """Numbers by name as a trainer takes them.

    Examples:
      >>> from jax_rele.tune.space import hyperparameters
      >>> hyperparameters({"weight.score": 0.5, "learning_rate": 1e-3}).weights
      {'score': 0.5}
    """

    def of(prefix: str) -> dict[str, float]:
        return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}

    return Hyperparameters(of(WEIGHT), of(TEMPERATURE), values[RATE])


def config_fragment(distill: DistillConfig, recipe: str, values: Mapping[str, float]) -> str:
    """YAML of the keys of a config that make the recipe with these numbers an objective `RECIPE_tuned`."""
    objective, numbers = distill.objectives.get(recipe), hyperparameters(values)
    terms = {} if objective is None else objective.model_dump(mode="json", exclude_unset=True).get("terms", {})
    for key, named in (("weight", numbers.weights), ("temperature", numbers.temperatures)):
        for name, value in named.items():
            terms.setdefault(name, {})[key] = value
    tuned = {"base": recipe if objective is None else objective.base, "terms": terms}
    document = {
        "distill": {
            "objectives": {f"{recipe}_tuned": tuned},
            "optimization": {"learning_rate": numbers.learning_rate},
        }
    }
    return yaml.safe_dump(document, sort_keys=False)

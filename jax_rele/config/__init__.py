"""One tree of frozen, validated config classes: YAML in, unknown keys refused with their path."""

from jax_rele.config.annotate import AnnotateConfig, ChatEndpointConfig
from jax_rele.config.data import CandidatesConfig, DataConfig, HuggingFaceConfig, SplitsConfig, TextLossConfig
from jax_rele.config.distill import DistillConfig, ObjectiveConfig, ScheduleConfig, TermConfig
from jax_rele.config.evaluate import EvaluateConfig
from jax_rele.config.labels import LabelsConfig
from jax_rele.config.load import describe, explain_unknown, flatten, from_dict, load, parse_yaml
from jax_rele.config.mesh import MeshConfig
from jax_rele.config.optimization import OptimizationConfig
from jax_rele.config.paths import INPUTS, is_input, local_name, resolve_paths
from jax_rele.config.prefer import PreferConfig
from jax_rele.config.rationale import RationaleConfig
from jax_rele.config.reinforce import IterationConfig, ReinforceConfig
from jax_rele.config.root import Config
from jax_rele.config.rounds import RoundsConfig
from jax_rele.config.rules import RuleConfig
from jax_rele.config.student import CrossEncoderConfig, RandomEncoderConfig, StudentConfig, TwoTowerConfig
from jax_rele.config.teacher import (
    AdaptConfig,
    FinetuneConfig,
    LoraConfig,
    PerspectiveConfig,
    RandomDecoderConfig,
    ScoreConfig,
    TeacherConfig,
)
from jax_rele.config.tune import RangeConfig, TuneConfig

__all__ = [
    "INPUTS",
    "AdaptConfig",
    "AnnotateConfig",
    "CandidatesConfig",
    "ChatEndpointConfig",
    "Config",
    "CrossEncoderConfig",
    "DataConfig",
    "DistillConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "HuggingFaceConfig",
    "IterationConfig",
    "LabelsConfig",
    "LoraConfig",
    "MeshConfig",
    "ObjectiveConfig",
    "OptimizationConfig",
    "PerspectiveConfig",
    "PreferConfig",
    "RandomDecoderConfig",
    "RandomEncoderConfig",
    "RangeConfig",
    "RationaleConfig",
    "ReinforceConfig",
    "RoundsConfig",
    "RuleConfig",
    "ScheduleConfig",
    "ScoreConfig",
    "SplitsConfig",
    "StudentConfig",
    "TeacherConfig",
    "TermConfig",
    "TextLossConfig",
    "TuneConfig",
    "TwoTowerConfig",
    "describe",
    "explain_unknown",
    "flatten",
    "from_dict",
    "is_input",
    "load",
    "local_name",
    "parse_yaml",
    "resolve_paths",
]

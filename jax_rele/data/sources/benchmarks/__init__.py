"""Published benchmarks as TFDS builders, built from their official files and read without TensorFlow.

Importing this package registers the builders: `tfds.data_source("wands", split="test", data_dir=...)` works after it.
"""

from jax_rele.data.sources.benchmarks.build import BENCHMARKS, content_hash, rows
from jax_rele.data.sources.benchmarks.esci import Esci
from jax_rele.data.sources.benchmarks.wands import Wands

__all__ = ["BENCHMARKS", "Esci", "Wands", "content_hash", "rows"]

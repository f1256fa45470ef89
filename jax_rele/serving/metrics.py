"""What Prometheus reads of a service. Each service has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from jax_rele.data.tokens.text_loss import TextLoss
from jax_rele.serving.batcher import Batcher

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = tuple(float(2**power) for power in range(11))
_TOKENS = tuple(float(2**power) for power in range(4, 17))
STAGES = ("tokenise", "queue", "infer", "search")


class Metrics:
    """Counters and histograms of requests and batches."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("jax_rele_requests", "Requests answered", ["route", "status"], registry=registry)
        self._failures = Counter("jax_rele_failures", "Requests refused", ["route", "error_type"], registry=registry)
        self._rows = Counter("jax_rele_rows", "Pairs judged and texts embedded", ["route"], registry=registry)
        self._tokens = Counter("jax_rele_text_tokens", "Tokens of texts", ["kind"], registry=registry)
        self._characters = Counter("jax_rele_text_characters", "Characters of texts", ["kind"], registry=registry)
        self._duration = Histogram(
            "jax_rele_request_seconds", "Whole requests", ["route"], buckets=_SECONDS, registry=registry
        )
        self._stage = Histogram(
            "jax_rele_stage_seconds", "Stages of requests", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._queue = Gauge("jax_rele_queue_rows", "Rows that wait", ["model"], registry=registry)
        self._batch_rows = Histogram(
            "jax_rele_batch_rows", "Rows of a batch", ["model"], buckets=_ROWS, registry=registry
        )
        self._batch_tokens = Histogram(
            "jax_rele_batch_tokens", "Tokens of a batch with padding", ["model"], buckets=_TOKENS, registry=registry
        )
        self._batch_seconds = Histogram(
            "jax_rele_batch_seconds", "Inference of a batch", ["model"], buckets=_SECONDS, registry=registry
        )

    def watch_queue(self, model: str, batcher: Batcher) -> None:
        """Reads the length of a batcher's queue whenever the metrics are read."""
        self._queue.labels(model).set_function(lambda: batcher.waiting)

    def batch_observer(self, model: str) -> Callable[[int, int, float], None]:
        """What a batcher tells of each batch."""
        rows_of, tokens_of = self._batch_rows.labels(model), self._batch_tokens.labels(model)
        seconds_of = self._batch_seconds.labels(model)

        def observe(rows: int, tokens: int, seconds: float) -> None:
            rows_of.observe(rows)
            tokens_of.observe(tokens)
            seconds_of.observe(seconds)

        return observe

    def request(
        self, route: str, status: int, seconds: float, stages: Mapping[str, float], rows: int, error_type: str
    ) -> None:
        """Counts one request."""
        self._requests.labels(route, str(status)).inc()
        self._duration.labels(route).observe(seconds)
        self._rows.labels(route).inc(rows)
        if error_type:
            self._failures.labels(route, error_type).inc()
        for stage, value in stages.items():
            self._stage.labels(stage).observe(value)

    def text_loss(self, loss: TextLoss) -> None:
        """Counts what of a request's texts was read, unknown and cut."""
        for kind, count in (
            ("read", loss.tokens - loss.cut_tokens),
            ("unknown", loss.unknown_tokens),
            ("cut", loss.cut_tokens),
        ):
            self._tokens.labels(kind).inc(count)
        for kind, count in (("all", loss.characters), ("unknown", loss.unknown_characters)):
            self._characters.labels(kind).inc(count)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

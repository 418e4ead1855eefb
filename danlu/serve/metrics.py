"""What a server counts, in Prometheus' text form. Each server has a registry of its own."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from danlu.device import memory_parts
from danlu.generate.answers import Load

_SPEED_WINDOW_SECONDS = 10.0
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Speed:
    """Tokens a second over the last ten seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._made: deque[tuple[float, int]] = deque()

    def add(self, tokens: int) -> None:
        self._made.append((self._clock(), tokens))
        self._forget()

    @property
    def per_second(self) -> float:
        self._forget()
        return sum(tokens for _, tokens in self._made) / _SPEED_WINDOW_SECONDS

    def _forget(self) -> None:
        while self._made and self._made[0][0] < self._clock() - _SPEED_WINDOW_SECONDS:
            self._made.popleft()


class Metrics:
    """Counts of one server.

    Args:
        load: what the engine is busy with; None where there is no engine here.
    """

    def __init__(self, load: Callable[[], Load] | None) -> None:
        self.registry = CollectorRegistry()
        self.speed = Speed()
        self.requests = Counter(
            "danlu_requests", "requests that ended, by what became of them", ["outcome"], registry=self.registry
        )
        self.prompt_tokens = Counter("danlu_prompt_tokens", "tokens of prompts", registry=self.registry)
        self.generated_tokens = Counter("danlu_generated_tokens", "tokens of answers", registry=self.registry)
        self.first_token = Histogram(
            "danlu_time_to_first_token_seconds",
            "from a request's arrival to the first piece of an answer; of beams, to the answer",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "danlu_request_seconds", "from a request's arrival to its end", buckets=_SECONDS, registry=self.registry
        )
        self.embedded_tokens = Counter("danlu_embedded_tokens", "tokens of embedded texts", registry=self.registry)
        if load is not None:
            self.registry.register(_Gauges(load, self.speed))

    def tokens(self, count: int) -> None:
        """Tokens of an answer that have just been made."""
        if count:
            self.generated_tokens.inc(count)
            self.speed.add(count)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Gauges(Collector):
    """The engine as it is at the moment of asking."""

    def __init__(self, load: Callable[[], Load], speed: Speed) -> None:
        self._load, self._speed = load, speed

    def collect(self) -> Iterator[Metric]:
        load = self._load()
        yield GaugeMetricFamily("danlu_requests_waiting", "prompts that are not being read yet", load.waiting)
        yield GaugeMetricFamily("danlu_requests_running", "prompts that are read or answered", load.running)
        yield GaugeMetricFamily("danlu_rows_running", "answers and beams that grow in each step", load.rows)
        yield GaugeMetricFamily("danlu_kv_bytes", "allocated for keys and values of requests", load.kv_bytes)
        yield GaugeMetricFamily("danlu_prefix_cache_bytes", "held by the prefix cache", load.prefix_cache_bytes)
        yield GaugeMetricFamily("danlu_form_bytes", "held by compiled forms at most", load.form_bytes)
        memory = GaugeMetricFamily(
            "danlu_memory_bytes",
            "of the process: resident is files, heap_used and other; heap_used is heap_before, heap_made, heap_since "
            "the engine was made; heap_free is free in the allocator",
            labels=["part"],
        )
        for part, size in _parts(load).items():
            memory.add_metric([part], size)
        yield memory
        yield GaugeMetricFamily("danlu_weight_bytes", "the model's own weights", load.weight_bytes)
        yield GaugeMetricFamily("danlu_product_bytes", "weights in the forms of faster products", load.product_bytes)
        yield CounterMetricFamily(
            "danlu_prefix_hit_tokens", "tokens found in the prefix cache instead of read", load.prefix_hit_tokens
        )
        yield GaugeMetricFamily("danlu_kv_budget_bytes", "what both may take", load.kv_budget_bytes)
        yield GaugeMetricFamily("danlu_tokens_per_second", "over the last 10 seconds", self._speed.per_second)


def _parts(load: Load) -> dict[str, int]:
    parts = memory_parts()
    if "heap_used" in parts:
        parts["heap_before"], parts["heap_made"] = load.heap_before_bytes, load.heap_made_bytes
        parts["heap_since"] = parts["heap_used"] - load.heap_before_bytes - load.heap_made_bytes
    return parts

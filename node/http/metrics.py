"""What Prometheus reads at /metrics: this surface's own figures, and gauges that the daemon lends."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
LATELY, LATELY_MOST = 60.0, 4_096
_STEP_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True)
class Reading:
    """One value of a gauge now. Readings of one `name` carry the same label names."""

    name: str
    help: str
    value: float
    labels: dict[str, str] = field(default_factory=dict)


_TOGETHER = 256
"""Steps added at once."""


class _Lent(Collector):
    def __init__(self, source: Callable[[], Iterable[Reading]]) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for reading in self._source():
            labels = sorted(reading.labels)
            family = families.setdefault(reading.name, GaugeMetricFamily(reading.name, reading.help, labels=labels))
            family.add_metric([reading.labels[label] for label in labels], reading.value)
        return families.values()

    def describe(self) -> Iterable[Metric]:
        """Nothing: else the registry would ask the source at registration."""
        return []


class Metrics:
    """One registry per application, so that two nodes in a process don't meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        one = self.registry
        self._new_steps: list[tuple[str, str, float]] = []
        """Seven for each token of a pipeline, just when the next step is in a hurry: they are added together, or when somebody looks."""
        self.register_collector(self._add_steps)
        self._requests = Counter("mf_http_requests", "HTTP requests answered", ["method", "path", "status"], registry=one)
        self._seconds = Histogram(
            "mf_http_request_seconds", "Seconds from request to end of reply", ["path"], buckets=_SECONDS, registry=one
        )
        self.in_flight = Gauge("mf_http_requests_in_flight", "HTTP requests being answered", registry=one)
        self._generations = Counter("mf_generations", "Replies by where they ran and how they ended", ["kind", "outcome"], registry=one)
        self._tokens = Counter("mf_tokens", "Tokens of finished replies", ["part"], registry=one)
        self._first = Histogram("mf_time_to_first_token_seconds", "Seconds from request to first token", buckets=_SECONDS, registry=one)
        self._audits = Counter("mf_audits", "Audits of shards at others by verdict", ["verdict"], registry=one)
        self._stage_audits = Counter("mf_stage_audits", "Sessions run again at others by what came of it", ["verdict"], registry=one)
        self._stage_sessions = Counter(
            "mf_stage_audit_sessions",
            "Sessions over others' stages: run, drawn for an audit, what became of it",
            ["what"],
            registry=one,
        )
        self._stage_steps = Counter("mf_stage_audit_steps", "Their steps: run, drawn, audited, dropped", ["what"], registry=one)
        self._steps = Histogram(
            "mf_step_seconds",
            "Steps through stages: compute and wait of own ones, and of each on the way of replies asked here, there network too, a hop",
            ["where", "part"],
            buckets=_STEP_SECONDS,
            registry=one,
        )
        self.answered = 0
        self._lately: deque[tuple[float, bool]] = deque(maxlen=LATELY_MOST)

    def step(self, where: str, part: str, seconds: float) -> None:
        """`where` own or route, `part` compute, wait or network."""
        self._new_steps.append((where, part, seconds))
        if len(self._new_steps) >= _TOGETHER:
            self._add_steps()

    def _add_steps(self) -> Iterable[Reading]:
        steps, self._new_steps = self._new_steps, []
        for where, part, seconds in steps:
            self._steps.labels(where, part).observe(seconds)
        return ()

    def audit(self, verdict: str) -> None:
        self._audits.labels(verdict).inc()

    def stage_audit(self, what: str, name: str, number: int) -> None:
        """As node/audit_tally.py counts: `what` is outcome, sessions or steps."""
        {"outcome": self._stage_audits, "sessions": self._stage_sessions, "steps": self._stage_steps}[what].labels(name).inc(number)

    def register_collector(self, source: Callable[[], Iterable[Reading]]) -> None:
        """`source` is called, on the loop, at each reading of /metrics: it must be quick and raise nothing."""
        self.registry.register(_Lent(source))

    def request(self, method: str, path: str, status: int, seconds: float) -> None:
        """`path` is the route's template, never what the client wrote: labels stay few."""
        self.answered += 1
        self._lately.append((time.monotonic(), status == 500))
        self._requests.labels(method if method in _METHODS else "other", path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def lately(self) -> tuple[int, int]:
        """Answers of the last minute (the newest 4,096 of them), and at how many requests the node itself failed (status 500)."""
        since = time.monotonic() - LATELY
        while self._lately and self._lately[0][0] < since:
            self._lately.popleft()
        return len(self._lately), sum(failed for _at, failed in self._lately)

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def generation(self, kind: str, outcome: str, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """`outcome`: stop, length, an error's code, or cancelled."""
        self._generations.labels(kind, outcome).inc()
        self._tokens.labels("prompt").inc(prompt_tokens)
        self._tokens.labels("completion").inc(completion_tokens)

    def page(self) -> bytes:
        """The registry in Prometheus' text format."""
        return generate_latest(self.registry)

"""Write the figures of workers for Prometheus, by its own client library, which is the extra `metrics`.

Each worker's numbers have the label `worker`, and are not added up here: when a worker is replaced, its numbers begin
anew, which Prometheus understands for each of them and could not for their sum.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from quart_tenants.measures.durations import BOUNDS
from quart_tenants.measures.stats import DurationStats, Stats, TenantStats

OTHERS = "(others)"
"""The label of all tenants that are not named. No slug has brackets."""

_PREFIX = "quart_tenants_"
# What is told of each tenant: the figure, the name of its metric and the help.
_OF_TENANTS = {
    "requests": ("requests", "Answered requests of the tenant."),
    "refused": ("refused_requests", "Requests of the tenant that were answered 429."),
    "errors": ("failed_requests", "Requests of the tenant that were answered by a status from 500 on."),
    "bytes": ("answer_bytes", "Bytes in the bodies of the tenant's answers."),
    "blocks": ("blocks", "Blocks of the tenant that have ended."),
    "block_seconds": ("block_seconds", "Seconds in the tenant's blocks, with their waiting."),
    "statements": ("statements", "Statements in the tenant's blocks."),
    "statement_seconds": ("statement_seconds", "Seconds in which the tenant's blocks waited for the server."),
    "rows": ("rows", "Rows that the tenant's blocks read."),
    "failed_logins": ("failed_logins", "Wrong passwords at the tenant."),
}

_Values = Sequence[tuple[tuple[str, ...], float]]
"""The labels of each number, without their names, and the number."""

Worker = tuple[str, int, Stats | None]
"""A worker's label, how often one was started under it, and its figures, if it is alive."""


class StatsCollector:
    """What `prometheus_client` collects: the metrics of workers. Make it anew for each scrape."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._living = [(name, stats) for name, _, stats in workers if stats is not None]

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        yield self._gauge(
            "worker_up", "Whether the worker gives figures.", [((n,), s is not None) for n, _, s in self._workers]
        )
        starts = [((name,), starts) for name, starts, _ in self._workers]
        yield self._counter("worker_starts", "How often a worker was started in this place.", starts)
        yield from self._collect_requests()
        yield from self._collect_blocks()
        yield from self._collect_pool()
        yield from self._collect_registry()
        yield from self._collect_logins()
        yield from self._collect_tenants()
        yield from self._collect_figures()

    def _collect_requests(self) -> Iterator[Metric]:
        of = self._living
        yield self._counter(
            "requests",
            "Requests by HTTP, by the class of the answer; none: the client went away before it.",
            [((n, status), count) for n, s in of for status, count in s.requests.by_status.items()],
            "status",
        )
        yield self._histogram(
            "answer_delay_seconds", "Until an answer began.", [(n, s.requests.until_answer) for n, s in of]
        )
        yield self._gauge("requests_in_progress", "Requests now.", [((n,), s.requests.in_progress) for n, s in of])
        yield self._counter("answer_bytes", "Bytes of all bodies.", [((n,), s.requests.bytes) for n, s in of])
        yield self._counter("retried_views", "Views that ran once more.", [((n,), s.requests.retried) for n, s in of])

    def _collect_blocks(self) -> Iterator[Metric]:
        of = [(name, stats.blocks) for name, stats in self._living]
        yield self._histogram("block_seconds", "How long blocks took, waiting too.", [(n, b.ended) for n, b in of])
        yield self._counter("failed_blocks", "Blocks that ended by an error.", [((n,), b.failed) for n, b in of])
        yield self._counter("slow_blocks", "Blocks that were slow.", [((n,), b.slow) for n, b in of])
        yield self._counter("statements", "Statements in blocks.", [((n,), b.statements) for n, b in of])
        yield self._counter(
            "statement_seconds", "Seconds of waiting for the server.", [((n,), b.statement_seconds) for n, b in of]
        )
        yield self._counter("round_trips", "Messages to the server and back.", [((n,), b.round_trips) for n, b in of])
        yield self._counter("rows", "Rows that blocks read.", [((n,), b.rows) for n, b in of])

    def _collect_pool(self) -> Iterator[Metric]:
        of = [(name, stats.pool) for name, stats in self._living]
        yield self._gauge(
            "connections",
            "Connections to the database, by what they do.",
            [((n, state), c) for n, p in of for state, c in (("idle", p.idle), ("lent", p.size - p.idle))],
            "state",
        )
        yield self._gauge("connections_max", "Connections at most.", [((n,), p.max_size) for n, p in of])
        yield self._gauge(
            "waiting_blocks",
            "Blocks that wait, by what for: the tenant's share, or a connection.",
            [
                ((n, reason), count)
                for n, p in of
                for reason, count in (("share", p.waiting_for_share), ("connection", p.waiting_for_connection))
            ],
            "for",
        )
        yield self._counter(
            "block_wait_seconds",
            "Seconds that blocks have waited, by what for.",
            [
                ((n, reason), seconds)
                for n, p in of
                for reason, seconds in (("share", p.share_wait_seconds), ("connection", p.connection_wait_seconds))
            ],
            "for",
        )
        yield self._counter(
            "refused_blocks",
            "Blocks that were refused, by what they did not get.",
            [
                ((n, reason), count)
                for n, p in of
                for reason, count in (
                    ("share", p.refused_by_share),
                    ("connection", p.refused_by_pool),
                    ("stuck", p.refused_as_stuck),
                )
            ],
            "for",
        )
        yield self._gauge(
            "stuck_tenants", "Tenants whose last blocks timed out.", [((n,), p.stuck_tenants) for n, p in of]
        )
        yield self._counter("opened_connections", "Connections that were opened.", [((n,), p.opened) for n, p in of])
        yield self._counter(
            "closed_connections",
            "Connections that were replaced, by the reason.",
            [((n, reason), count) for n, p in of for reason, count in p.closed.items()],
            "reason",
        )

    def _collect_registry(self) -> Iterator[Metric]:
        of = [(name, stats.registry) for name, stats in self._living]
        yield self._gauge("registry_age_seconds", "Since the registry was read.", [((n,), r.age) for n, r in of])
        yield self._gauge("tenants", "Tenants outside the trash.", [((n,), r.tenants) for n, r in of])
        yield self._gauge("suspended_tenants", "Tenants that are suspended.", [((n,), r.suspended) for n, r in of])
        yield self._gauge("behind_tenants", "Tenants that must be migrated first.", [((n,), r.behind) for n, r in of])
        yield self._gauge(
            "tenant_behind",
            "1 for some of those tenants, by name.",
            [((n, slug), 1) for n, r in of for slug in r.behind_slugs],
            "tenant",
        )
        yield self._counter("unknown_lookups", "Visits of unknown tenants.", [((n,), r.unknown_lookups) for n, r in of])
        yield self._counter("failed_registry_reads", "Failed reads.", [((n,), r.failed_reads) for n, r in of])

    def _collect_logins(self) -> Iterator[Metric]:
        sessions = [(name, stats.sessions) for name, stats in self._living]
        yield self._counter(
            "sessions",
            "Sessions, by what happened to them: read, another tenant's, asked about in the database, ended.",
            [((n, kind), getattr(s, kind)) for n, s in sessions for kind in ("checked", "refused", "asked", "ended")],
            "event",
        )
        logins = [(name, stats.logins) for name, stats in self._living]
        yield self._counter(
            "logins",
            "Attempts to log in, by how they ended.",
            [((n, kind), getattr(s, kind)) for n, s in logins for kind in ("succeeded", "failed", "throttled")],
            "outcome",
        )
        yield self._counter("login_attempts", "Attempts to log in.", [((n,), s.attempts) for n, s in logins])
        yield self._gauge("logins_in_progress", "Attempts to log in now.", [((n,), s.in_progress) for n, s in logins])

    def _collect_tenants(self) -> Iterator[Metric]:
        told: list[tuple[str, str, TenantStats]] = [
            (name, tenant.slug or OTHERS, tenant)
            for name, stats in self._living
            for tenant in (*stats.tenants, stats.other_tenants)
        ]
        for figure, (metric, explained) in _OF_TENANTS.items():
            values = [((name, slug), getattr(tenant, figure)) for name, slug, tenant in told]
            yield self._counter(f"tenant_{metric}", explained, values, "tenant")
        lent = [
            ((name, slug), sum(block.tenant == slug for block in stats.open_blocks))
            for name, stats in self._living
            for slug in dict.fromkeys(block.tenant for block in stats.open_blocks if block.tenant is not None)
        ]
        yield self._gauge("tenant_open_blocks", "Blocks of the tenant that are open or wait.", lent, "tenant")

    def _collect_figures(self) -> Iterator[Metric]:
        for figure in sorted({figure for _, stats in self._living for figure in stats.figures}):
            of = [((name,), stats.figures[figure]) for name, stats in self._living if figure in stats.figures]
            make = self._counter if figure.endswith("_total") else self._gauge
            yield make(f"app_{figure.removesuffix('_total')}", "A figure of the app's own.", of)

    def _gauge(self, name: str, explained: str, values: _Values, *labels: str) -> Metric:
        return _fill(GaugeMetricFamily(_PREFIX + name, explained, labels=("worker", *labels)), values)

    def _counter(self, name: str, explained: str, values: _Values, *labels: str) -> Metric:
        return _fill(CounterMetricFamily(_PREFIX + name, explained, labels=("worker", *labels)), values)

    def _histogram(self, name: str, explained: str, values: Sequence[tuple[str, DurationStats]]) -> Metric:
        family = HistogramMetricFamily(_PREFIX + name, explained, labels=("worker",))
        for worker, durations in values:
            ends = [f"{bound:g}" for bound in BOUNDS] + ["+Inf"]
            family.add_metric((worker,), list(zip(ends, accumulate(durations.counts), strict=True)), durations.seconds)
        return family


def write_metrics(workers: Sequence[Worker], accept: str) -> tuple[bytes, str]:
    """Return the metrics of *workers*, and their content type.

    Args:
        workers: Their figures.
        accept: What the request says that it takes.
    """
    encode: Any
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry()
    registry.register(StatsCollector(workers))
    return encode(registry), content_type


def _fill(family: Any, values: _Values) -> Metric:
    for labels, value in values:
        family.add_metric(labels, value)
    return family  # type: ignore[no-any-return]

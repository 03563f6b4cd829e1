"""Write the figures of workers for Prometheus, by its own client library, which is the extra `metrics`.

What only grows is the sum of all workers, in which a worker that was replaced stays. What is so now has the label
`worker`: the pools, what is in progress, the age of the news. How many tenants there are is the same for all.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from quart_tenants.measures import metric_names as names
from quart_tenants.measures.durations import BOUNDS
from quart_tenants.measures.stats import (
    BlockStats,
    DurationStats,
    LoginStats,
    PoolStats,
    RegistryStats,
    RequestStats,
    SessionStats,
    Stats,
)
from quart_tenants.measures.sums import Worker, add_up

_Values = Sequence[tuple[tuple[str, ...], float]]
"""The labels of each number, without their names, and the number."""

_OF_TENANTS = {
    "requests": "Answered requests of the tenant.",
    "refused": "Requests of the tenant that were answered 429.",
    "errors": "Requests of the tenant that were answered by a status from 500 on.",
    "bytes": "Bytes in the bodies of the tenant's answers.",
    "blocks": "Blocks of the tenant that have ended.",
    "block_seconds": "Seconds in the tenant's blocks, with their waiting.",
    "statements": "Statements in the tenant's blocks.",
    "statement_seconds": "Seconds in which the tenant's blocks waited for the server.",
    "rows": "Rows that the tenant's blocks read.",
    "failed_logins": "Wrong passwords at the tenant.",
}


class StatsCollector:
    """What `prometheus_client` collects: the metrics of workers. Make it anew for each scrape."""

    def __init__(self, workers: Sequence[Worker], named: int = 20) -> None:
        """Prepare to collect.

        Args:
            workers: Their figures.
            named: Of how many tenants the open blocks are told: those with the most.
        """
        self._workers = workers
        self._named = named
        self._living = [(one.name, one.stats) for one in workers if one.is_up and one.stats is not None]

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        up = [((one.name,), one.is_up) for one in self._workers]
        yield _gauge(names.WORKER_UP, "Whether the worker gives figures.", up, "worker")
        starts = [((one.name,), one.starts) for one in self._workers]
        yield _counter(names.WORKER_STARTS, "How often a worker was started in this place.", starts, "worker")
        # A worker that is gone has counted, too: without it the sums would go down.
        counted = [one.stats for one in self._workers if one.stats is not None]
        if counted:
            total = reduce(add_up, counted)
            yield from _sum_requests(total.requests)
            yield from _sum_blocks(total.blocks)
            yield from _sum_pool(total.pool)
            yield from _sum_registry(total.registry)
            yield from _sum_logins(total.sessions, total.logins)
            yield from _sum_tenants(total)
            for figure, value in sorted(total.figures.items()):
                if figure.endswith(names.TOTAL):
                    yield _counter(f"app_{figure.removesuffix(names.TOTAL)}", "A figure of the app's own.", value)
        yield from self._show_workers()
        yield from self._show_registry()
        yield from self._show_blocks()

    def _show_workers(self) -> Iterator[Metric]:
        """Yield what is so now, which only the worker itself can be asked for."""
        of = self._living
        yield _gauge("requests_in_progress", "Requests now.", [((n,), s.requests.in_progress) for n, s in of], "worker")
        yield _gauge(
            names.CONNECTIONS,
            "Connections to the database, by what they do.",
            [
                ((n, state), count)
                for n, s in of
                for state, count in (("idle", s.pool.idle), ("lent", s.pool.size - s.pool.idle))
            ],
            "worker",
            "state",
        )
        yield _gauge("connections_max", "Connections at most.", [((n,), s.pool.max_size) for n, s in of], "worker")
        yield _gauge(
            "waiting_blocks",
            "Blocks that wait, by what for: the tenant's share, or a connection.",
            [
                ((n, reason), count)
                for n, s in of
                for reason, count in (
                    ("share", s.pool.waiting_for_share),
                    ("connection", s.pool.waiting_for_connection),
                )
            ],
            "worker",
            "for",
        )
        stuck = [((n,), s.pool.stuck_tenants) for n, s in of]
        yield _gauge("stuck_tenants", "Tenants whose last blocks timed out.", stuck, "worker")
        ages = [((n,), s.registry.age) for n, s in of]
        yield _gauge(names.REGISTRY_AGE, "Since the registry was read.", ages, "worker")
        logins = [((n,), s.logins.in_progress) for n, s in of]
        yield _gauge("logins_in_progress", "Attempts to log in now.", logins, "worker")
        for figure in sorted({figure for _, stats in of for figure in stats.figures}):
            if not figure.endswith(names.TOTAL):
                values = [((n,), s.figures[figure]) for n, s in of if figure in s.figures]
                yield _gauge(f"app_{figure}", "A figure of the app's own.", values, "worker")

    def _show_registry(self) -> Iterator[Metric]:
        """Yield how the fleet is, as the worker with the latest news knows it."""
        if not self._living:
            return
        registry = min((stats.registry for _, stats in self._living), key=lambda one: one.age)
        yield _gauge("tenants", "Tenants outside the trash.", registry.tenants)
        yield _gauge("suspended_tenants", "Tenants that are suspended.", registry.suspended)
        yield _gauge(names.BEHIND_TENANTS, "Tenants that must be migrated first.", registry.behind)
        behind = [((slug,), 1) for slug in registry.behind_slugs]
        yield _gauge(names.TENANT_BEHIND, "1 for some of those tenants, by name.", behind, "tenant")

    def _show_blocks(self) -> Iterator[Metric]:
        """Yield which tenants have blocks that are open. One whose blocks do not end need not be a busy one."""
        blocks = [block for _, stats in self._living for block in stats.open_blocks]
        count = Counter(block.tenant for block in blocks if block.tenant is not None)
        most = [((slug,), number) for slug, number in count.most_common(self._named)]
        yield _gauge("tenant_open_blocks", "Blocks of some tenants that are open or wait.", most, "tenant")


def _sum_requests(requests: RequestStats) -> Iterator[Metric]:
    yield _counter(
        names.REQUESTS,
        "Requests by HTTP, by the class of the answer; none: the client went away before it.",
        _label(requests.by_status),
        "status",
    )
    yield _histogram(names.ANSWER_DELAY, "Until an answer began.", requests.until_answer)
    yield _counter("answer_bytes", "Bytes of all bodies.", requests.bytes)
    yield _counter("retried_views", "Views that ran once more.", requests.retried)


def _sum_blocks(blocks: BlockStats) -> Iterator[Metric]:
    yield _histogram("block_seconds", "How long blocks took, waiting too.", blocks.ended)
    yield _counter("failed_blocks", "Blocks that ended by an error.", blocks.failed)
    yield _counter("slow_blocks", "Blocks that were slow.", blocks.slow)
    yield _counter("statements", "Statements in blocks.", blocks.statements)
    yield _counter("statement_seconds", "Seconds of waiting for the server.", blocks.statement_seconds)
    yield _counter("round_trips", "Messages to the server and back.", blocks.round_trips)
    yield _counter("rows", "Rows that blocks read.", blocks.rows)


def _sum_pool(pool: PoolStats) -> Iterator[Metric]:
    yield _counter(
        "block_wait_seconds",
        "Seconds that blocks have waited, by what for.",
        _label({"share": pool.share_wait_seconds, "connection": pool.connection_wait_seconds}),
        "for",
    )
    yield _counter(
        "refused_blocks",
        "Blocks that were refused, by what they did not get.",
        _label({"share": pool.refused_by_share, "connection": pool.refused_by_pool, "stuck": pool.refused_as_stuck}),
        "for",
    )
    yield _counter("opened_connections", "Connections that were opened.", pool.opened)
    yield _counter(
        "closed_connections", "Connections that were replaced, by the reason.", _label(pool.closed), "reason"
    )


def _sum_registry(registry: RegistryStats) -> Iterator[Metric]:
    yield _counter("unknown_lookups", "Visits of unknown tenants.", registry.unknown_lookups)
    yield _counter("failed_registry_reads", "Failed reads.", registry.failed_reads)


def _sum_logins(sessions: SessionStats, logins: LoginStats) -> Iterator[Metric]:
    yield _counter(
        "sessions",
        "Sessions, by what happened to them: read, another tenant's, asked about in the database, ended.",
        [((kind,), getattr(sessions, kind)) for kind in ("checked", "refused", "asked", "ended")],
        "event",
    )
    yield _counter(
        "logins",
        "Attempts to log in, by how they ended.",
        [((kind,), getattr(logins, kind)) for kind in ("succeeded", "failed", "throttled")],
        "outcome",
    )
    yield _counter("login_attempts", "Attempts to log in.", logins.attempts)


def _sum_tenants(total: Stats) -> Iterator[Metric]:
    told = [(tenant.slug or names.OTHERS, tenant) for tenant in (*total.tenants, total.other_tenants)]
    for figure, explained in _OF_TENANTS.items():
        values = [((slug,), getattr(tenant, figure)) for slug, tenant in told]
        yield _counter(names.OF_TENANTS[figure], explained, values, "tenant")


def _label(values: Mapping[str, float]) -> _Values:
    return [((label,), value) for label, value in values.items()]


def _gauge(name: str, explained: str, values: _Values | float, *labels: str) -> Metric:
    return _fill(GaugeMetricFamily(names.PREFIX + name, explained, labels=labels), values)


def _counter(name: str, explained: str, values: _Values | float, *labels: str) -> Metric:
    return _fill(CounterMetricFamily(names.PREFIX + name, explained, labels=labels), values)


def _fill(family: Any, values: _Values | float) -> Metric:
    for labels, value in [((), values)] if isinstance(values, int | float) else values:
        family.add_metric(labels, value)
    return family  # type: ignore[no-any-return]


def _histogram(name: str, explained: str, durations: DurationStats) -> Metric:
    ends = [f"{bound:g}" for bound in BOUNDS] + ["+Inf"]
    buckets = list(zip(ends, accumulate(durations.counts), strict=True))
    return HistogramMetricFamily(names.PREFIX + name, explained, buckets=buckets, sum_value=durations.seconds)


def write_metrics(workers: Sequence[Worker], accept: str, named: int = 20) -> tuple[bytes, str]:
    """Return the metrics of *workers*, and their content type.

    Args:
        workers: Their figures.
        accept: What the request says that it takes.
        named: As for `StatsCollector`.
    """
    encode: Any
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry()
    registry.register(StatsCollector(workers, named))
    return encode(registry), content_type

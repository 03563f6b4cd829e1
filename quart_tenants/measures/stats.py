"""What `QuartTenants.get_stats()` returns: the figures of one worker, since its start unless something else is said."""

from dataclasses import dataclass, field, fields

NOW = "now"
"""In the metadata of a field: the number says how something is now. All others only grow."""


@dataclass(frozen=True, slots=True)
class DurationStats:
    """How many took how long.

    Attributes:
        counts: One number for each bucket of `quart_tenants.measures.durations.BOUNDS`, and one for what took longer.
        seconds: All together.
    """

    counts: tuple[int, ...]
    seconds: float

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class RequestStats:
    """Requests by HTTP. Websockets are not among them.

    Attributes:
        by_status: How many were answered, by the first digit of the status: `"2xx"` and so on. `"none"` counts those
            that got no answer, because the client went away.
        in_progress: Now.
        until_answer: How long it took until the answer began.
        bytes: Of the bodies of all answers.
        retried: How often `retry_reads` has run a view once more.
    """

    by_status: dict[str, int]
    in_progress: int = field(metadata={NOW: True})
    until_answer: DurationStats
    bytes: int
    retried: int


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The connections of this worker's pool. The one of the registry's feed is not among them.

    Attributes:
        size: Connections that are open now.
        max_size: How many may be.
        idle: Connections that no block has now.
        waiting_for_share: Blocks that wait now, because their tenant has its whole share.
        waiting_for_connection: Blocks that wait now, because all connections are lent.
        share_wait_seconds: How long blocks have waited for the first of these.
        connection_wait_seconds: How long blocks have waited for a connection. To open one counts, too.
        refused_by_share: Blocks that were refused, because their tenant had its share, and its queue was full or slow.
        refused_by_pool: Blocks that got no connection in time.
        refused_as_stuck: Blocks that were refused, because the last ones of their tenant had timed out.
        stuck_tenants: How many tenants are in that state now.
        opened: Connections that were opened.
        closed: Connections that were replaced, by the reason: see `quart_tenants.measures.counts.CLOSE_REASONS`.
    """

    size: int = field(metadata={NOW: True})
    max_size: int = field(metadata={NOW: True})
    idle: int = field(metadata={NOW: True})
    waiting_for_share: int = field(metadata={NOW: True})
    waiting_for_connection: int = field(metadata={NOW: True})
    share_wait_seconds: float
    connection_wait_seconds: float
    refused_by_share: int
    refused_by_pool: int
    refused_as_stuck: int
    stuck_tenants: int = field(metadata={NOW: True})
    opened: int
    closed: dict[str, int]


@dataclass(frozen=True, slots=True)
class BlockStats:
    """Blocks, of tenants and of none, and their statements.

    Attributes:
        ended: How long each block took that has ended, from the moment in which it asked for a connection.
        failed: How many of them ended by an error or a cancellation.
        slow: How many of them took longer than `TENANTS_SLOW_BLOCK`.
        statements: How many statements they ran.
        statement_seconds: How long these statements took.
        round_trips: How many messages went to the server and back. Plain connections do not count them.
        rows: How many rows they read. Those of cursors are not counted.
    """

    ended: DurationStats
    failed: int
    slow: int
    statements: int
    statement_seconds: float
    round_trips: int
    rows: int


@dataclass(frozen=True, slots=True)
class RegistryStats:
    """What this worker knows of the tenants.

    Attributes:
        age: Seconds since the registry was read.
        tenants: How many there are, outside the trash.
        suspended: How many of them are suspended.
        behind: How many of them are not served, because their tables are older than the app needs.
        behind_slugs: The slugs of some of those, at most `TENANTS_METRICS_TENANTS`.
        unknown_lookups: How often a visitor asked for a tenant that this worker did not know, so that it looked again.
        failed_reads: How often the registry could not be read.
    """

    age: float = field(metadata={NOW: True})
    tenants: int = field(metadata={NOW: True})
    suspended: int = field(metadata={NOW: True})
    behind: int = field(metadata={NOW: True})
    behind_slugs: tuple[str, ...] = field(metadata={NOW: True})
    unknown_lookups: int
    failed_reads: int


@dataclass(frozen=True, slots=True)
class SessionStats:
    """The sessions of visitors.

    Attributes:
        checked: Cookies that were read.
        refused: Cookies that were another tenant's.
        asked: How often the database was asked whether a session was ended, for want of news.
        ended: Sessions that were ended in this worker, by a logout or a new login.
    """

    checked: int
    refused: int
    asked: int
    ended: int


@dataclass(frozen=True, slots=True)
class LoginStats:
    """Attempts to log in, by `login_attempt`.

    Attributes:
        in_progress: Attempts that run now, or wait for others of the same account.
        attempts: How many there were. Those that were throttled are among them.
        succeeded: How many had the right password.
        failed: How many had a wrong one.
        throttled: How many came too early after failures, and were refused.
    """

    in_progress: int = field(metadata={NOW: True})
    attempts: int
    succeeded: int
    failed: int
    throttled: int


@dataclass(frozen=True, slots=True)
class TenantStats:
    """What one tenant did in this worker, since it was named.

    Attributes:
        slug: Of the tenant; empty for all others together.
        requests: Answered requests.
        refused: Of these, answers 429: too many requests, or too many failed logins.
        errors: Of these, answers from 500 on.
        bytes: Of the bodies of its answers.
        blocks: Blocks that have ended.
        block_seconds: How long these took, with their waiting.
        statements: Statements in these blocks.
        statement_seconds: How long these took.
        rows: Rows that were read.
        failed_logins: Wrong passwords.
    """

    slug: str = field(metadata={NOW: True})
    requests: int = 0
    refused: int = 0
    errors: int = 0
    bytes: int = 0
    blocks: int = 0
    block_seconds: float = 0.0
    statements: int = 0
    statement_seconds: float = 0.0
    rows: int = 0
    failed_logins: int = 0


TENANT_FIGURES = tuple(field.name for field in fields(TenantStats) if field.name != "slug")
"""The names of all figures of a tenant."""


@dataclass(frozen=True, slots=True)
class OpenBlock:
    """A block that has not ended.

    Attributes:
        tenant: The slug of its tenant; None for no tenant's.
        state: What it does: it waits for its `share` or for a `connection`, or it has a connection and is `open`.
        seconds: How long it is there.
        backend: The number of its server process, as in `pg_stat_activity`; None while it waits.
    """

    tenant: str | None
    state: str
    seconds: float
    backend: int | None


@dataclass(frozen=True, slots=True)
class Stats:
    """The figures of one worker.

    Attributes:
        pid: The worker's process.
        uptime: Seconds since the app started to serve.
        requests: Requests.
        pool: Connections.
        blocks: Blocks and statements.
        registry: Tenants.
        sessions: Sessions.
        logins: Attempts to log in.
        tenants: The busiest tenants of the last time, at most `TENANTS_METRICS_TENANTS`; under `serve` with
            `TENANTS_METRICS_BIND` the busiest ones of all workers.
        other_tenants: All others together. What a tenant did while it was among the busiest is not in here.
        open_blocks: The blocks that are open now, at most fifty, the oldest first.
        figures: The app's own, by name.
    """

    pid: int
    uptime: float
    requests: RequestStats
    pool: PoolStats
    blocks: BlockStats
    registry: RegistryStats
    sessions: SessionStats
    logins: LoginStats
    tenants: tuple[TenantStats, ...]
    other_tenants: TenantStats
    open_blocks: tuple[OpenBlock, ...]
    figures: dict[str, float]

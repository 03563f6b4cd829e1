"""The counters of one worker. Whoever does something adds to them; `QuartTenants.get_stats()` reads them.

The event loop alone uses them, so no lock is needed. They are plain attributes, because a call costs more than an
addition.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from quart_tenants.measures.durations import Durations
from quart_tenants.measures.stats import (
    BlockStats,
    DurationStats,
    LoginStats,
    OpenBlock,
    RequestStats,
    SessionStats,
)
from quart_tenants.measures.tenant_table import TenantTable

if TYPE_CHECKING:
    from quart_tenants.measures.spans import Spans

_logger = logging.getLogger(__name__)

CLOSE_REASONS = {
    "lost": "The server, or the way to it, was gone, or nobody knows how far COMMIT came.",
    "outdated": "The server had been silent on another connection, and all of that age were replaced.",
    "altered": "A block had set what no reset undoes, such as a type codec.",
    "queries": "It had served many statements.",
    "memory": "Its server process had become too large, or had served too many tenants.",
}
"""Why a connection is replaced."""

STATUS_CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")
"""The classes of answers, by the first digit of the status; 0 for no answer."""

_MOST_FIGURES = 100
_FIGURE_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")

Figures = Callable[[], Mapping[str, float]]
"""Returns an app's own figures by name."""


class _Block(Protocol):
    """What is asked of an open block."""

    def describe(self, now: float) -> OpenBlock: ...


class Measures:
    """What one worker counts.

    Attributes:
        slow_block: Seconds. A block that takes so long gets a line in the log.
        named_tenants: How many tenants are told by name.
        tenants: By tenant. What each did stands here only: statements, rows, bytes.
        figures: What returns the app's own.
        spans: Tells each request, block and statement to OpenTelemetry; None if nobody wants that.
    """

    def __init__(
        self, *, slow_block: float = math.inf, named_tenants: int = 0, figures: list[Figures] | None = None
    ) -> None:
        self.slow_block = slow_block
        self.named_tenants = named_tenants
        self.began_at = monotonic()
        self.tenants = TenantTable(named_tenants)
        self.figures = [] if figures is None else figures
        self.spans: Spans | None = None

        self.answers = [0] * len(STATUS_CLASSES)
        self.requests_in_progress = 0
        self.until_answer = Durations()
        self.retried = 0

        self.share_wait_seconds = 0.0
        self.connection_wait_seconds = 0.0
        self.refused_by_share = 0
        self.refused_by_pool = 0
        self.refused_as_stuck = 0
        self.connections_opened = 0
        self.connections_closed = dict.fromkeys(CLOSE_REASONS, 0)

        self.block_durations = Durations()
        self.failed_blocks = 0
        self.slow_blocks = 0
        self.round_trips = 0
        self.open_blocks: set[_Block] = set()

        self.unknown_lookups = 0
        self.failed_reads = 0

        self.sessions_checked = 0
        self.sessions_refused = 0
        self.sessions_asked = 0
        self.sessions_ended = 0

        self.logins_in_progress = 0
        self.login_attempts = 0
        self.logins_succeeded = 0
        self.logins_failed = 0
        self.logins_throttled = 0

    def get_uptime(self) -> float:
        """Return for how many seconds there is something to count."""
        return monotonic() - self.began_at

    def show_requests(self) -> RequestStats:
        """Return what was counted of requests."""
        return RequestStats(
            by_status=dict(zip(STATUS_CLASSES, self.answers, strict=True)),
            in_progress=self.requests_in_progress,
            until_answer=_show(self.until_answer),
            bytes=self.tenants.sum_up().bytes,
            retried=self.retried,
        )

    def show_blocks(self) -> BlockStats:
        """Return what was counted of blocks."""
        total = self.tenants.sum_up()
        return BlockStats(
            ended=_show(self.block_durations),
            failed=self.failed_blocks,
            slow=self.slow_blocks,
            statements=total.statements,
            statement_seconds=total.statement_seconds,
            round_trips=self.round_trips,
            rows=total.rows,
        )

    def show_sessions(self) -> SessionStats:
        """Return what was counted of sessions."""
        return SessionStats(
            checked=self.sessions_checked,
            refused=self.sessions_refused,
            asked=self.sessions_asked,
            ended=self.sessions_ended,
        )

    def show_logins(self) -> LoginStats:
        """Return what was counted of logins."""
        return LoginStats(
            in_progress=self.logins_in_progress,
            attempts=self.login_attempts,
            succeeded=self.logins_succeeded,
            failed=self.logins_failed,
            throttled=self.logins_throttled,
        )

    def list_open_blocks(self) -> list[OpenBlock]:
        """Return all blocks that are open, the oldest first."""
        now = monotonic()
        return sorted((block.describe(now) for block in self.open_blocks), key=lambda block: -block.seconds)

    def collect_figures(self) -> dict[str, float]:
        """Return the app's own figures. What is wrong with one of them is logged, and it is left out."""
        collected: dict[str, float] = {}
        for figures in self.figures:
            try:
                for name, value in figures().items():
                    if not _FIGURE_NAME.fullmatch(name):
                        raise ValueError(f"{name!r} is no name of a figure: small letters, digits and underscores")
                    if len(collected) >= _MOST_FIGURES and name not in collected:
                        raise ValueError(f"there are more than {_MOST_FIGURES} figures")
                    if not math.isfinite(value):
                        # JSON has no such number, and a sum with it would be none, either.
                        raise ValueError(f"{name} is {value}")
                    collected[name] = float(value)
            except Exception as error:
                # An app's mistake here must not hide all other figures.
                _logger.warning("figures of the app are left out: %s", error, exc_info=error)
        return collected


def _show(durations: Durations) -> DurationStats:
    return DurationStats(tuple(durations.counts), durations.seconds)

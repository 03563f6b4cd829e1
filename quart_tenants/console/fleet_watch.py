"""Know what needs doing in the fleet, without letting a page wait for it."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quart_tenants.errors import TenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.doctor.catalogue_checks import Finding
from quart_tenants.postgres.doctor.fleet_tasks import describe_tasks
from quart_tenants.postgres.driver.refusals import translate_refusals
from quart_tenants.postgres.fleet.status import FleetStatus, get_fleet_status
from quart_tenants.settings import Settings
from quart_tenants.web.commands.worker_figures import find_all_tasks

_VALID_FOR = 10.0
"""Seconds, until a page lets it be looked at anew."""


@dataclass(frozen=True)
class FleetNews:
    """What `status` says, without the drift.

    Attributes:
        at: By the monotonic clock.
        headline: The first line of `status`, or why it cannot be told.
        tasks: What needs doing.
        status: The numbers; None if they cannot be told.
    """

    at: float
    headline: str
    tasks: Sequence[Finding]
    status: FleetStatus | None

    @property
    def age(self) -> int:
        """Seconds since it was looked at."""
        return int(time.monotonic() - self.at)


class FleetWatch:
    """Looks for what needs doing when somebody asks. In a large fleet that takes longer than a page may take.

    So a page shows what was seen last, and the next one what is seen now.
    """

    def __init__(self, get_database: Callable[[], Database], settings: Settings) -> None:
        self._get_database = get_database
        self._settings = settings
        self._news: FleetNews | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Look, unless that was done lately or is under way."""
        if self._task is None and (self._news is None or time.monotonic() - self._news.at > _VALID_FOR):
            self._task = asyncio.create_task(self._look(), name="quart_tenants console")

    async def get_news(self, patience: float = 0.1) -> FleetNews | None:
        """Return what was seen last, or else what is seen within *patience* seconds; None for nothing yet."""
        self.begin()
        if self._news is None and self._task is not None:
            await asyncio.wait([self._task], timeout=patience)
        return self._news

    def forget(self) -> None:
        """Let the next page look anew, because something was done."""
        self._news = None

    async def close(self) -> None:
        """End a look that is under way."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _look(self) -> None:
        began = time.monotonic()
        try:
            with translate_refusals():
                status = await get_fleet_status(self._get_database(), settings=self._settings, drift=False)
                tasks = await find_all_tasks(self._get_database(), status, settings=self._settings)
            self._news = FleetNews(began, describe_tasks(tasks), tasks, status)
        except TenantError as error:
            self._news = FleetNews(began, f"what needs doing cannot be told: {error}", (), None)
        finally:
            self._task = None

"""Answer Prometheus on a port of its own, where no tenant is served."""

import asyncio
import contextlib
import importlib
import importlib.util
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, NoReturn

from quart_tenants.errors import SettingError
from quart_tenants.measures.counts import Measures
from quart_tenants.measures.elections import Election
from quart_tenants.measures.metric_names import TOTAL
from quart_tenants.measures.stats import Stats
from quart_tenants.measures.sums import add_up
from quart_tenants.server.addresses import listen_at, name_address
from quart_tenants.server.figure_board import FigureBoard, Names
from quart_tenants.settings import Settings

log = logging.getLogger(__name__)

_LEFT_EVERY = 1.0
"""Seconds. So old are figures at most that Prometheus gets."""
_PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class MetricsPort:
    """Where Prometheus asks.

    Attributes:
        listener: Listens already.
        board: Where the workers leave their figures.
    """

    listener: socket.socket
    board: FigureBoard


def open_metrics_port(settings: Settings) -> socket.socket | None:
    """Open the port that `TENANTS_METRICS_BIND` names, or return None if it names none.

    Raises:
        SettingError: The extra `metrics` is not installed.
        AddressInUseError: Another program uses the address, or we have no right to use it.
    """
    if settings.metrics_bind is None:
        return None
    if importlib.util.find_spec("prometheus_client") is None:
        raise SettingError("TENANTS_METRICS_BIND", "needs the extra: pip install 'quart-tenants[metrics]'")
    host, _, port = settings.metrics_bind.rpartition(":")
    listener = listen_at(host.strip("[]"), int(port))
    log.info("metrics at http://%s/metrics", name_address(listener))
    return listener


async def leave_figures(
    board: FigureBoard, number: int, measures: Measures, get_stats: Callable[[], Stats]
) -> NoReturn:
    """Leave the figures of the worker *number* on *board* again and again, and once more when it is cancelled."""
    failed = False
    leave = begin_leaving(board, number, measures, get_stats)
    while True:
        try:
            leave()
        except Exception:
            # The worker serves all the same, and its figures are missing where Prometheus asks.
            if not failed:
                log.exception("the figures of this worker cannot be told")
            failed = True
        else:
            failed = False
        try:
            await asyncio.sleep(_LEFT_EVERY)
        except asyncio.CancelledError:
            # The worker ends. The sums of those after it would lack what it has done since the last time.
            with contextlib.suppress(Exception):
                leave()
            raise


def begin_leaving(
    board: FigureBoard,
    number: int,
    measures: Measures,
    get_stats: Callable[[], Stats],
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[], None]:
    """Return what leaves the figures of the worker *number*, which has just begun, on *board*.

    Args:
        board: Where to.
        number: The worker's place.
        measures: Its own.
        get_stats: Returns its figures.
        clock: Returns seconds, for the election of those who are named.
    """
    # What workers before it have counted stays in the numbers, because a sum of all workers must not go down.
    before = board.begin(number)
    totals: dict[str, float] = {}
    table = measures.tenants
    # One worker decides for all. While it is being replaced, the names stay.
    election = None
    if number == 0:
        known = board.read_names()
        election = Election(measures.named_tenants, clock, known.slugs, known.held_at)

    def leave() -> None:
        nonlocal before
        if election is not None:
            slugs = election.hold([table.find_busiest(), *board.read_votes(without=number)])
            board.write_names(Names(slugs, election.held_at))
        names = board.read_names().slugs
        table.name(names)
        stats = get_stats()
        # The same for a number of the app's own that is missing now, such as because its function has raised.
        totals.update({name: value for name, value in stats.figures.items() if name.endswith(TOTAL)})
        stats = replace(stats, figures=totals | stats.figures)
        if before is not None:
            # A tenant whose name is gone begins at 0 when it gets the name again, here as in the table.
            before = replace(before, tenants=tuple(tenant for tenant in before.tenants if tenant.slug in names))
            stats = add_up(before, stats)
        board.write(number, stats, table.find_busiest())

    return leave


class MetricsApp:
    """The ASGI app behind that port: it answers `/metrics`, and 404 everywhere else."""

    def __init__(self, board: FigureBoard, named: int) -> None:
        """Answer with what is on *board*; *named* says how many tenants are told by name at most."""
        self._board = board
        self._named = named
        # The extra may be left out, and no other module needs it.
        self._families: Any = importlib.import_module("quart_tenants.measures.metric_families")

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        """Answer the request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1002, "reason": None})
            return
        body, content_type, status = b"here is /metrics\n", _PLAIN, HTTPStatus.NOT_FOUND
        if scope["path"] == "/metrics":
            if scope["method"] in ("GET", "HEAD"):
                accept = b",".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
                body, content_type = self._families.write_metrics(self._board.read(), accept, self._named)
                status = HTTPStatus.OK
            else:
                status = HTTPStatus.METHOD_NOT_ALLOWED
        headers = [
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        await send({"type": "http.response.start", "status": int(status), "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

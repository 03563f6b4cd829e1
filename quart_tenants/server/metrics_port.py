"""Answer Prometheus on a port of its own, where no tenant is served."""

import asyncio
import importlib
import importlib.util
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn

from quart_tenants.errors import SettingError
from quart_tenants.measures.stats import Stats
from quart_tenants.server.addresses import listen_at, name_address
from quart_tenants.server.figure_board import FigureBoard
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


async def leave_figures(board: FigureBoard, number: int, get_stats: Callable[[], Stats]) -> NoReturn:
    """Leave the figures of the worker *number* on *board* again and again, until it is cancelled."""
    failed = False
    board.begin(number)
    while True:
        try:
            board.write(number, get_stats())
        except Exception:
            # The worker serves all the same, and its figures are missing where Prometheus asks.
            if not failed:
                log.exception("the figures of this worker cannot be told")
            failed = True
        else:
            failed = False
        await asyncio.sleep(_LEFT_EVERY)


class MetricsApp:
    """The ASGI app behind that port: it answers `/metrics`, and 404 everywhere else."""

    def __init__(self, board: FigureBoard) -> None:
        self._board = board
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
                body, content_type = self._families.write_metrics(self._board.read(), accept)
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

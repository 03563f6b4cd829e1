"""Serve the app in one process by Hypercorn, until this process is asked to end."""

import asyncio
import contextlib
import functools
import gc
import logging
import math
import random
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.lifespan import Lifespan
from hypercorn.asyncio.statsd import StatsdLogger
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.utils import LifespanFailureError, LifespanTimeoutError

from quart_tenants.errors import SettingError, TenantError
from quart_tenants.server.applications import Application, check_app, load_app
from quart_tenants.server.metrics_port import MetricsApp, MetricsPort, leave_figures
from quart_tenants.server.one_task_requests import serve_requests
from quart_tenants.server.protocols.connections import (
    LimitedConnection,
    abort_connections,
    close_idle_connections,
    limit_connections,
)
from quart_tenants.server.short_memory import watch_memory
from quart_tenants.web.logs.log_setup import follow_app_settings
from quart_tenants.web.state import TenantState, find_state

if TYPE_CHECKING:
    from hypercorn.typing import LifespanState
    from quart import Quart

    from quart_tenants.server.worker_link import Link

log = logging.getLogger(__name__)

_ACCEPTED_WITHIN = 0.05
"""Seconds. A connection that was accepted just before we stop accepting has its task after so long."""
_LAST_REQUEST_WITHIN = 1.0
"""Seconds. A connection that is idle when the worker is to end stays open so long: its client may have sent the next
request already, which is answered as the last one. A proxy, or a client that sends one request after another, does."""
_AFTER_ABORT = 1.0
"""Seconds. Handlers whose client went away have so long to end."""
_ALARM_MARGIN = 5
"""Seconds. After the graceful timeout: a worker that has no supervisor any more ends then, whatever it does."""
_SIGNS_WITHIN_PATIENCE = 10
"""How often a worker says that it is alive in the time after which it would be killed."""
_OBJECTS_BETWEEN_COLLECTIONS = 10_000


@dataclass(frozen=True)
class Worker:
    """One process that serves.

    Attributes:
        application: The app.
        config: Its addresses are sockets that are open already.
        plain: Whether Quart itself handles each request, without what makes requests cheaper.
        metrics: Where Prometheus asks for the figures of all workers, if anywhere.
    """

    application: Application
    config: Config
    plain: bool = False
    metrics: MetricsPort | None = None

    def serve(self, link: "Link | None" = None, announce: Callable[[], None] = lambda: None) -> int:
        """Serve until SIGTERM, or without a supervisor until SIGINT or SIGTERM; return the exit status.

        Args:
            link: To the supervisor; None if there is none.
            announce: Called when ready, if there is no supervisor.

        Raises:
            TenantError: The app cannot be served.
        """
        app, settings = load_app(self.application)
        follow_app_settings(settings)
        if settings.metrics_bind is not None and self.metrics is None:
            raise SettingError(
                "TENANTS_METRICS_BIND",
                "is in the app's own configuration, which is read too late to open a port for all workers: "
                "put it into the environment as QUART_TENANTS_METRICS_BIND",
            )
        # load_app has looked whether there is a state.
        cast("TenantState", find_state(app)).has_metrics_port = self.metrics is not None
        if link is None or link.is_first:
            check_app(app, settings)
        if not self.plain:
            serve_requests(app)
        limit_connections()
        loop_factory = None
        if self.config.worker_class == "uvloop":
            import uvloop

            loop_factory = uvloop.new_event_loop
        with asyncio.Runner(debug=self.config.debug, loop_factory=loop_factory) as runner:
            try:
                say_ready = (lambda _: announce()) if link is None else link.say_ready
                runner.run(_serve_connections(app, self.config, say_ready, link, settings.worker_timeout, self.metrics))
            except (LifespanFailureError, LifespanTimeoutError) as error:
                # The traceback is Hypercorn's and says nothing more.
                log.error("the app did not stop properly: %s", error)
                return 1
        return 0


async def _serve_connections(
    app: "Quart",
    config: Config,
    announce: Callable[[float], None],
    link: "Link | None",
    patience: float,
    metrics: MetricsPort | None,
) -> None:
    """Start *app*, serve all connections, and stop both, as `hypercorn.asyncio.run.worker_serve` does.

    There are two differences, both at the end. The last answer of a connection says that it is the last one, so that no
    client sends another request to a socket that is about to close. And when `graceful_timeout` is over, clients are
    cut off, which ends their handlers properly. Hypercorn cancels its own tasks then, but Quart's handlers do not
    notice and keep their database connections.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    _notice_the_end(stop, link, config.graceful_timeout)
    secure: dict[str, Any] = {"ssl": _read_certificate(config), "ssl_handshake_timeout": config.ssl_handshake_timeout}
    config.set_statsd_logger_class(StatsdLogger)
    wrapper = ASGIWrapper(app)
    state: LifespanState = {}
    lifespan = Lifespan(wrapper, config, loop, state)
    living = loop.create_task(lifespan.handle_lifespan())
    try:
        await lifespan.wait_for_startup()
        if living.done():
            living.result()
    except (LifespanFailureError, LifespanTimeoutError) as error:
        raise TenantError(f"the app does not start: {error}") from error

    # Not all workers are to end at the same time.
    jitter = random.randint(0, config.max_requests_jitter)  # noqa: S311
    context = WorkerContext(None if config.max_requests is None else config.max_requests + jitter)
    connections: set[asyncio.Task[Any]] = set()

    async def serve_connection(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, served: ASGIWrapper = wrapper
    ) -> None:
        task: Any = asyncio.current_task()
        connections.add(task)
        task.add_done_callback(connections.discard)
        await LimitedConnection(served, loop, config, context, state, reader, writer)

    sockets = config.create_sockets()
    servers = [
        (await asyncio.start_server(serve_connection, sock=listener, backlog=config.backlog, **options), options)
        for options, listeners in (({}, sockets.insecure_sockets), (secure, sockets.secure_sockets))
        for listener in listeners
    ]
    scraping = telling = None
    if metrics is not None:
        tenants = cast("TenantState", find_state(app))
        answering = ASGIWrapper(MetricsApp(metrics.board, tenants.measures.named_tenants))
        serve_scrape = functools.partial(serve_connection, served=answering)
        scraping = await asyncio.start_server(serve_scrape, sock=metrics.listener.dup())
        number = 0 if link is None else link.number
        leaving = leave_figures(metrics.board, number, tenants.measures, tenants.get_stats)
        telling = loop.create_task(leaving, name="quart_tenants figures")
    _spare_garbage_collector()
    watch_memory(None if link is None else stop.set)
    announce(patience)
    ends = [loop.create_task(stop.wait()), loop.create_task(context.terminate.wait())]
    if link is None:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    else:
        signs = loop.create_task(_say_alive(link, patience))
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        signs.cancel()
        link.say_ending()
        _set_alarm(config.graceful_timeout)

    if scraping is not None:
        scraping.close()
    wrapper.app = _say_last(app)
    over = loop.time() + config.graceful_timeout
    late = [
        loop.create_task(_serve_accepted(accepted, serve_connection, options))
        for server, options in servers
        for accepted in await _stop_accepting(server)
    ]
    await asyncio.sleep(_ACCEPTED_WITHIN)
    await _wait_for(connections, min(_LAST_REQUEST_WITHIN, config.graceful_timeout))
    # From here on Hypercorn closes a connection after its answer, and at once if it waits for a request.
    await context.terminated.set()
    await close_idle_connections()
    await _wait_for(connections, over - loop.time())
    abort_connections()
    await _wait_for(connections, _AFTER_ABORT)
    for task in late:
        # One that does not even agree on TLS.
        task.cancel()
    if telling is not None:
        telling.cancel()
    await lifespan.wait_for_shutdown()
    if living.done():
        living.result()


def _notice_the_end(stop: asyncio.Event, link: "Link | None", graceful_timeout: float) -> None:
    """Set *stop* when this process is asked to end, or its supervisor is gone."""
    loop = asyncio.get_running_loop()
    if link is None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        return
    lifeline = link.lifeline

    def end() -> None:
        loop.remove_reader(lifeline)
        _set_alarm(graceful_timeout)
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, end)
    loop.add_reader(lifeline, end)


def _set_alarm(graceful_timeout: float) -> None:
    """Let this process end some time after *graceful_timeout* seconds, whatever it does then.

    The supervisor, which would kill us in the end, may be gone, and something may block the event loop.
    """
    signal.alarm(math.ceil(graceful_timeout) + _ALARM_MARGIN)


async def _say_alive(link: "Link", patience: float) -> None:
    """Tell the supervisor again and again that the event loop runs, if its patience ends after some seconds at all."""
    while patience:
        link.say_alive()
        await asyncio.sleep(patience / _SIGNS_WITHIN_PATIENCE)


async def _stop_accepting(server: asyncio.Server) -> list[socket.socket]:
    """Close *server* to new connections; return those that the system has accepted for it already.

    The system resets them when the last process closes the listening socket, though their clients may have sent a
    request. Nothing can be done for one that comes between the last look and the close.
    """
    (listener,) = server.sockets
    # asyncio drops a connection that it has accepted in the turn of the event loop before the server is closed.
    asyncio.get_running_loop().remove_reader(listener.fileno())
    await asyncio.sleep(0)
    # The server closes its own.
    spare = listener.dup()
    server.close()
    accepted = []
    with spare, contextlib.suppress(BlockingIOError):
        while True:
            accepted.append(spare.accept()[0])
    return accepted


async def _serve_accepted(accepted: socket.socket, serve_connection: Any, options: dict[str, Any]) -> None:
    """Let *serve_connection* serve a connection as `asyncio.start_server` does."""
    loop = asyncio.get_running_loop()
    protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), serve_connection, loop=loop)
    # A client that has left, or does not agree on TLS.
    with contextlib.suppress(OSError):
        await loop.connect_accepted_socket(lambda: protocol, accepted, **options)


def _say_last(app: Any) -> Any:
    """Return *app* with answers that say that they are the last ones of their connections."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def send_last(event: Any) -> None:
            if event["type"] == "http.response.start":
                headers = [header for header in event["headers"] if bytes(header[0]).lower() != b"connection"]
                event = {**event, "headers": [*headers, (b"connection", b"close")]}
            await send(event)

        # HTTP/2 has no such header. Hypercorn says it there in its own way.
        says = scope["type"] == "http" and scope["http_version"].startswith("1")
        await app(scope, receive, send_last if says else send)

    return answer


async def _wait_for(connections: "set[asyncio.Task[Any]]", timeout: float) -> None:  # noqa: ASYNC109
    """Return when none of *connections* is open any more, or after *timeout* seconds."""
    if connections and timeout > 0:
        await asyncio.wait(connections, timeout=timeout)


def _read_certificate(config: Config) -> ssl.SSLContext | None:
    try:
        return config.create_ssl_context()
    except OSError as error:
        raise SettingError("certfile", f"and keyfile of Hypercorn's configuration cannot be used: {error}") from error


def _spare_garbage_collector() -> None:
    """Let the collector leave the app alone, and come less often.

    Rows are objects that the collector counts and looks at, and they are never garbage. Without this the collector
    takes a quarter of the time in which 10,000 rows are sent.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *gc.get_threshold()[1:])

"""Serve an app with Hypercorn."""

import asyncio
import gc
import logging
import math
import signal
import socket
from collections.abc import Callable

from hypercorn.asyncio.run import worker_serve
from hypercorn.config import Config, Sockets
from hypercorn.utils import LifespanFailureError, wrap_app, write_pid_file
from quart import Quart

from quart_tenants.errors import AddressInUseError, SettingError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.doctor.catalogue_checks import refuse_leaks
from quart_tenants.postgres.registry.registry_tables import check_registry
from quart_tenants.server.one_task_requests import serve_requests
from quart_tenants.server.protocols.connections import abort_connections, limit_connections
from quart_tenants.server.supervisor import Supervisor
from quart_tenants.settings import read_settings
from quart_tenants.web.environment import read_environment
from quart_tenants.web.logs.log_setup import SERVER_LOGGER, configure_logging
from quart_tenants.web.sessions.secret_keys import check_secret_key
from quart_tenants.web.state import find_state

_AFTER_ABORT = 1.0
"""Seconds. For handlers whose client went away."""
_OBJECTS_BETWEEN_COLLECTIONS = 10_000
_ALARM_MARGIN = 5
"""Seconds. After the graceful timeout: a worker that has no parent any more ends for certain then."""


def bind_server(config: Config, port: int | None = None) -> list[str]:
    """Open the addresses of *config* before anything else is started; return them as host:port.

    Hypercorn would let its workers share a port even with a stranger (SO_REUSEPORT), and show a
    traceback where it cannot have it.

    Args:
        config: Its `bind` is replaced by the open sockets.
        port: Instead of the configured port; 0 for any that is free.

    Raises:
        AddressInUseError: Somebody else serves there, or we may not.
        SettingError: An address is malformed.
    """
    addresses, binds = [], []
    for bind in config.bind:
        if bind.startswith(("unix:", "fd://")):
            addresses.append(bind)
            binds.append(bind)
            continue
        host, _, configured = bind.rpartition(":")
        host = host.strip("[]")
        try:
            listener = _listen(host, int(configured) if port is None else port)
        except ValueError as error:
            raise SettingError("bind", f"is {bind!r} in Hypercorn's configuration: give host:port") from error
        name = f"[{host}]" if ":" in host else host
        addresses.append(f"{name}:{listener.getsockname()[1]}")
        # From here on Hypercorn owns it.
        binds.append(f"fd://{listener.detach()}")
    config.bind = binds
    return addresses


def check_startup(create_app: Callable[[], Quart]) -> None:
    """Make sure that the app can serve, before any worker tries.

    Raises:
        SettingError: A setting is missing or wrong.
        DatabaseUnavailableError: The database does not let us in.
        RegistryNotReadyError: `quart-tenants init` has not run.
        LeakError: The database would let one tenant see another one's rows.
    """
    app = create_app()
    state = find_state(app)
    if state is None:
        raise SettingError("the app", "has no tenants: call QuartTenants(app)")
    settings = state.settings
    check_secret_key(app)

    async def check_database() -> None:
        async with (
            await Database.open(settings, max_size=1) as database,
            database.connection() as connection,
        ):
            await check_registry(connection)
        async with await Database.open(settings, max_size=1) as database:
            await refuse_leaks(database, settings=settings)

    asyncio.run(check_database())


def run_server(config: Config, create_app: Callable[[], Quart]) -> int:
    """Serve until SIGINT or SIGTERM; return the exit status. With `workers = 0` in this very process."""
    # Before the workers are forked, which log as this process does.
    configure_logging(read_settings(read_environment()))
    if config.errorlog == "-":
        config.errorlog = SERVER_LOGGER
    if config.pid_path is not None:
        write_pid_file(config.pid_path)
    # Here, not in the workers: a unix socket is made once.
    sockets = config.create_sockets()

    def serve(lifeline: int | None = None) -> int:
        return _serve_in_this_process(config, create_app, sockets, lifeline)

    workers, config.workers = config.workers, 1
    if workers == 0:
        return serve()

    def stop_listening() -> None:
        for listener in (*sockets.secure_sockets, *sockets.insecure_sockets, *sockets.quic_sockets):
            listener.close()

    return Supervisor(workers, serve, config.graceful_timeout, stop_listening).run()


def _serve_in_this_process(
    config: Config, create_app: Callable[[], Quart], sockets: Sockets, lifeline: int | None
) -> int:
    limit_connections()
    loop_factory = None
    if config.worker_class == "uvloop":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(debug=config.debug, loop_factory=loop_factory) as runner:
        try:
            runner.run(_serve_app(config, create_app, sockets, lifeline))
        except LifespanFailureError as error:
            # The app has said why, and the traceback is Hypercorn's.
            logging.getLogger(__name__).error("%s", error)
            return 1
    return 0


async def _serve_app(config: Config, create_app: Callable[[], Quart], sockets: Sockets, lifeline: int | None) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    patience = config.graceful_timeout
    # Hypercorn would cancel what is in flight then, but Quart's handlers do not notice, and keep their database
    # connections. A client that goes away ends them properly, so at the end of our patience all clients go away.
    config.graceful_timeout = patience + _AFTER_ABORT
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if lifeline is not None:

        def hear_the_end() -> None:
            loop.remove_reader(lifeline)
            stop.set()

        loop.add_reader(lifeline, hear_the_end)
        # The parent holds them back until here.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))

    async def wait_for_stop() -> None:
        # The app is there now.
        _spare_garbage_collector()
        await stop.wait()
        loop.call_later(patience, abort_connections)
        if lifeline is not None:
            # Also where the parent, which would kill us then, is gone, and whatever keeps the event loop.
            signal.alarm(math.ceil(patience) + _ALARM_MARGIN)

    app = create_app()
    serve_requests(app)
    await worker_serve(
        wrap_app(app, config.wsgi_max_body_size, "asgi"),
        config,
        sockets=sockets,
        shutdown_trigger=wait_for_stop,
    )


def _spare_garbage_collector() -> None:
    """Let the collector leave the app alone, and come less often.

    Rows are objects that it counts and looks at, and never garbage: without this it has a quarter of the time in which
    10,000 of them are sent.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *gc.get_threshold()[1:])


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Only past connections of the same port are overlooked by this; a living listener is not.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise AddressInUseError(f"{host}:{port}", error.strerror or str(error)) from error
    except OverflowError as error:
        listener.close()
        raise ValueError(str(error)) from error
    return listener

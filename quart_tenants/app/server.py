"""Serve the reference app with Hypercorn."""

import asyncio
import importlib.util
import socket
from pathlib import Path

from hypercorn.config import Config
from hypercorn.run import run

from quart_tenants.app import create_app
from quart_tenants.errors import AddressInUseError, SettingError
from quart_tenants.postgres.database import Database
from quart_tenants.postgres.registry_tables import check_registry
from quart_tenants.resources import get_resource_path
from quart_tenants.web.context import EXTENSION_NAME
from quart_tenants.web.sessions import check_secret_key

APPLICATION = "quart_tenants.app:create_app()"


def load_server_config(path: Path | None = None) -> Config:
    """Return Hypercorn's configuration from *path*, or from the hypercorn.toml that travels with us.

    Raises:
        SettingError: The file cannot be read.
    """
    path = path or get_resource_path("hypercorn.toml")
    try:
        config = Config.from_toml(path)
    except (OSError, ValueError) as error:
        raise SettingError(str(path), f"cannot be read as a Hypercorn configuration: {error}") from error
    config.application_path = APPLICATION
    if config.worker_class == "uvloop" and importlib.util.find_spec("uvloop") is None:
        config.worker_class = "asyncio"
    return config


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


def check_startup() -> None:
    """Make sure that the app can serve, before any worker tries.

    Raises:
        SettingError: A setting is missing or wrong.
        DatabaseUnavailableError: The database does not let us in.
        RegistryNotReadyError: `quart-tenants init` has not run.
    """
    app = create_app()
    settings = app.extensions[EXTENSION_NAME].settings
    check_secret_key(app)

    async def check_database() -> None:
        async with (
            await Database.open(settings, max_size=1) as database,
            database.connection() as connection,
        ):
            await check_registry(connection)

    asyncio.run(check_database())


def run_server(config: Config) -> int:
    """Serve until SIGINT or SIGTERM; return the exit status."""
    return run(config)


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

"""Serve an app: open the addresses, and run the workers that its configuration asks for."""

import os
from collections.abc import Callable
from pathlib import Path

from hypercorn.config import Config
from hypercorn.utils import write_pid_file

from quart_tenants.errors import SettingError
from quart_tenants.server.addresses import list_descriptors, open_addresses
from quart_tenants.server.applications import Application
from quart_tenants.server.configuration import load_server_config
from quart_tenants.server.figure_board import FigureBoard
from quart_tenants.server.metrics_port import MetricsPort, open_metrics_port
from quart_tenants.server.supervisor import Plan, Supervisor
from quart_tenants.server.worker import Worker
from quart_tenants.settings import read_settings
from quart_tenants.web.commands.serve import Order
from quart_tenants.web.environment import read_environment
from quart_tenants.web.logs.log_setup import SERVER_LOGGER, configure_logging


def serve(order: Order, default: Application, announce: Callable[[list[str]], None]) -> int:
    """Serve until SIGINT or SIGTERM; return the exit status. At SIGHUP new workers take up new code.

    The configuration is read again at SIGHUP, too, but for its addresses.

    Args:
        order: What is to be served, and how.
        default: Is served if neither *order* nor QUART_APP nor the configuration's `application_path` names an app.
        announce: Is called with the addresses when all workers serve.

    Raises:
        SettingError: The configuration or a setting is wrong, or the app cannot be loaded.
        AddressInUseError: An address is taken.
        TenantError: The app cannot be served, for a reason that the error's text says.
    """
    settings = read_settings(read_environment())
    configure_logging(settings)
    config = read_config(order.config)
    addresses = open_addresses(config, order.port)
    listener = open_metrics_port(settings)
    if config.pid_path is not None:
        write_pid_file(config.pid_path)
    named = order.application or os.environ.get("QUART_APP")

    def make_worker(config: Config) -> Worker:
        application = named or getattr(config, "application_path", None) or default
        # Each start has a board of its own, on which workers of the one before, which only finish, leave nothing.
        metrics = None if listener is None else MetricsPort(listener, FigureBoard(max(config.workers, 1)))
        return Worker(application, config, order.plain, metrics)

    if config.workers == 0:
        return make_worker(config).serve(announce=lambda: announce(addresses))

    def make_plan() -> Plan:
        again = read_config(order.config)
        if again.workers == 0:
            raise SettingError("workers", "is 0 now: that needs a restart")
        again.bind, again.insecure_bind = config.bind, config.insecure_bind
        return Plan(again.workers, make_worker(again).serve, again.startup_timeout, again.graceful_timeout)

    def stop_listening() -> None:
        for descriptor in list_descriptors(config):
            os.close(descriptor)
        if listener is not None:
            listener.close()

    return Supervisor(make_plan, lambda: announce(addresses), stop_listening).run()


def read_config(path: Path | None) -> Config:
    """Return what `load_server_config` returns, for a server whose log looks like ours."""
    config = load_server_config(path)
    if config.errorlog == "-":
        config.errorlog = SERVER_LOGGER
    return config

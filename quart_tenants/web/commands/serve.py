"""The command `serve`: hand an app over to the server."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import click
from quart.cli import ScriptInfo

from quart_tenants.web.commands.records import changes_nothing

PORT = click.IntRange(0, 65535)


@dataclass(frozen=True)
class Order:
    """What is to be served, and how.

    Attributes:
        application: The app's name, if it was given.
        config: A file for Hypercorn, or None for the one that comes with this package.
        port: Is used instead of the configured port.
        plain: Whether Quart itself handles each request, without what makes requests cheaper.
    """

    application: str | None
    config: Path | None
    port: int | None
    plain: bool


@dataclass(frozen=True)
class Program:
    """The program `quart-tenants`. Its group of commands gives this object to them.

    Attributes:
        serve: Serves until the process is asked to end; returns the exit status.
    """

    serve: Callable[[Order], int]


@click.command("serve")
@click.option(
    "--app",
    "application",
    help="The app, such as notes:create_app().  [default: QUART_APP, or the reference app]",
)
@click.option("--port", type=PORT, help="Instead of the configured port; 0 for any free one.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A Hypercorn configuration.  [default: the hypercorn.toml that comes with this program]",
)
@click.option("--plain", is_flag=True, help="Let Quart handle each request as everywhere, without our shortcuts.")
@changes_nothing
def serve_command(application: str | None, port: int | None, config: Path | None, plain: bool) -> None:
    """Serve an app on a database of your own.

    Needs QUART_TENANTS_DATABASE_URL and QUART_SECRET_KEY in the environment, and a database on
    which `quart-tenants init` has run. Ends on Ctrl-C or SIGTERM, after what is in flight. At
    SIGHUP new workers take up new code.
    """
    context = click.get_current_context()
    script = context.find_object(ScriptInfo)
    program = context.find_object(Program)
    if script is not None:
        _become_program(script, Order(application, config, port, plain))
    elif program is not None:
        sys.exit(program.serve(Order(application, config, port, plain)))
    else:
        raise click.ClickException("this command is for the programs `quart` and `quart-tenants`")


def _become_program(script: ScriptInfo, order: Order) -> NoReturn:
    """Let this process go on as `quart-tenants serve`.

    Quart has imported the app to find this command. But a supervisor must not have the app in memory, or the workers
    that it forks would keep the old code.
    """
    name = order.application or script.app_import_path
    if name is None and script.create_app is not None:
        raise click.ClickException("the app has no name here: use quart-tenants serve --app MODULE:NAME")
    # Quart looks for app.py if no app is named.
    command = [sys.executable, "-m", "quart_tenants", "serve", "--app", name or "app"]
    if order.port is not None:
        command += ["--port", str(order.port)]
    if order.config is not None:
        command += ["--config", str(order.config)]
    if order.plain:
        command.append("--plain")
    os.execv(sys.executable, command)  # noqa: S606  (a program of ours, by its full path)

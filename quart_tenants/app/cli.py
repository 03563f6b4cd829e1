"""The program `quart-tenants`: the operators' commands, users, serve and demo."""

import asyncio
import gc
import sys
from importlib.metadata import version
from pathlib import Path

import click

from quart_tenants.app import create_app
from quart_tenants.app.demo import COMPANIES, get_default_data_dir, prepare_app, prepare_demo
from quart_tenants.app.user_commands import user_commands
from quart_tenants.console.own_program import console_command
from quart_tenants.server.addresses import open_addresses
from quart_tenants.server.figure_board import FigureBoard
from quart_tenants.server.metrics_port import MetricsPort, open_metrics_port
from quart_tenants.server.serving import read_config, serve
from quart_tenants.server.worker import Worker
from quart_tenants.settings import read_settings
from quart_tenants.web.commands.group import tenant_commands
from quart_tenants.web.commands.records import changes_nothing
from quart_tenants.web.commands.serve import PORT, Order, Program
from quart_tenants.web.environment import read_environment
from quart_tenants.web.logs.log_setup import configure_logging


@click.command("demo")
@click.option("--app", "application", help="An app of your own instead of the two companies, such as notes.")
@click.option("--port", type=PORT, default=5000, show_default=True, help="0 for any free one.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the database is kept.  [default: your folder for applications' data, or with --app .database]",
)
@click.option("--fresh", is_flag=True, help="Begin anew: delete the data of earlier starts.")
@changes_nothing
def demo_command(application: str | None, port: int, data_dir: Path | None, fresh: bool) -> None:
    """Start two companies, or an app of your own, on a private PostgreSQL.

    With --app the registry is made and all tables are brought forward first. Ctrl-C ends
    everything that it started. The data is kept for the next start.
    """
    data_dir = (data_dir or (Path(".database") if application else get_default_data_dir())).absolute()
    config = read_config(None)
    # The port may be taken, so it comes before everything that is started.
    (address,) = open_addresses(config, port)
    settings = read_settings(read_environment())
    configure_logging(settings)
    listener = open_metrics_port(settings)
    if application is None:
        server = asyncio.run(prepare_demo(data_dir, fresh=fresh))
    else:
        server = asyncio.run(prepare_app(data_dir, application, fresh=fresh))
    try:
        # There is no supervisor: whatever ends this process ends all.
        metrics = None if listener is None else MetricsPort(listener, FigureBoard(1))
        worker = Worker(application or create_app, config, metrics=metrics)
        number = address.rpartition(":")[2]
        status = worker.serve(announce=lambda: _print_welcome(number, data_dir, server.url if application else None))
    finally:
        asyncio.run(server.stop())
    sys.exit(status)


def _print_welcome(port: str, data_dir: Path, app_url: str | None) -> None:
    """Say what is served. *app_url*: the URL of the database of an app of the user's own, or None for the demo's."""
    if app_url is not None:
        click.echo(f"""\
Your app is at http://localhost:{port}

For the app's commands, in another terminal:

  export QUART_TENANTS_DATABASE_URL='{app_url}'

The data is kept in {data_dir}. Press Ctrl-C to end.
""")
        sys.stdout.flush()
        return
    rows = [f"  http://{company}.localhost:{port}   user_{n}   foo" for n, company in enumerate(COMPANIES, start=1)]
    first = f"http://{COMPANIES[0]}.localhost:{port}"
    click.echo(f"""\
Two companies, each with an address, a user and a password:

{rows[0]}
{rows[1]}

Open one of them in a browser, sign in, and see the data of that company and of no other.
A company of your own: http://localhost:{port}/sign-up

Without a browser:

  curl -c cookie.txt --data "uname=user_1&passwd=foo" {first}/login
  curl -b cookie.txt {first}/data

The data is kept in {data_dir}. Press Ctrl-C to end.
""")
    sys.stdout.flush()


def _serve(order: Order) -> int:
    def announce(addresses: list[str]) -> None:
        for address in addresses:
            click.echo(f"serving on {address}")

    return serve(order, create_app, announce)


main = tenant_commands("quart-tenants")
main.help = (
    "One customer = one subdomain = one PostgreSQL schema.\n\nSettings are read from QUART_* in the environment."
)
main.context_settings.update(max_content_width=80, obj=Program(_serve))
click.version_option(version("quart-tenants"), prog_name="quart-tenants")(main)
for _command in (user_commands(), demo_command, console_command):
    main.add_command(_command)
# What was imported stays until the program ends. Python's garbage collector would look through all of it then, which
# is a fifth of the time of a short command, and would do so in each forked worker as well.
gc.freeze()

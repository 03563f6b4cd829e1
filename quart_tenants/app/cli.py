"""The program `quart-tenants`: the operators' commands, users, serve and demo."""

import asyncio
import sys
from importlib.metadata import version
from pathlib import Path

import click

from quart_tenants.app import create_app
from quart_tenants.app.demo import COMPANIES, get_default_data_dir, prepare_demo
from quart_tenants.app.user_commands import user_commands
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
@click.option("--port", type=PORT, default=5000, show_default=True, help="0 for any free one.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the database is kept.  [default: your folder for applications' data]",
)
@click.option("--fresh", is_flag=True, help="Begin anew: delete the data of earlier starts.")
@changes_nothing
def demo_command(port: int, data_dir: Path | None, fresh: bool) -> None:
    """Start two companies on a private PostgreSQL.

    Ctrl-C ends everything that it started. The data is kept for the next start.
    """
    data_dir = (data_dir or get_default_data_dir()).absolute()
    config = read_config(None)
    # The port may be taken, so it comes before everything that is started.
    (address,) = open_addresses(config, port)
    listener = open_metrics_port(read_settings(read_environment()))
    server = asyncio.run(prepare_demo(data_dir, fresh=fresh))
    try:
        configure_logging(read_settings(read_environment()))
        # There is no supervisor: whatever ends this process ends all.
        metrics = None if listener is None else MetricsPort(listener, FigureBoard(1))
        worker = Worker(create_app, config, metrics=metrics)
        status = worker.serve_here(lambda: _print_welcome(address.rpartition(":")[2], data_dir))
    finally:
        asyncio.run(server.stop())
    sys.exit(status)


def _print_welcome(port: str, data_dir: Path) -> None:
    rows = [f"  http://{company}.localhost:{port}   user_{n}   foo" for n, company in enumerate(COMPANIES, start=1)]
    first = f"http://{COMPANIES[0]}.localhost:{port}"
    click.echo(f"""\
Two companies, each with an address, a user and a password:

{rows[0]}
{rows[1]}

Log in, and see the data of that company and of no other:

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
for _command in (user_commands(), demo_command):
    main.add_command(_command)

"""The program `quart-tenants`: the operators' commands, users, serve and demo."""

import asyncio
import sys
from importlib.metadata import version
from pathlib import Path

import click

from quart_tenants.app import create_app
from quart_tenants.app.demo import COMPANIES, get_default_data_dir, prepare_demo
from quart_tenants.app.user_commands import user_commands
from quart_tenants.server.configuration import load_server_config
from quart_tenants.server.serving import bind_server, check_startup, run_server
from quart_tenants.web.commands.group import tenant_commands
from quart_tenants.web.commands.records import changes_nothing

_PORT = click.IntRange(0, 65535)


@click.command("serve")
@click.option("--port", type=_PORT, help="Instead of the configured port; 0 for any free one.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A Hypercorn configuration.  [default: the hypercorn.toml that comes with this program]",
)
@changes_nothing
def serve_command(port: int | None, config: Path | None) -> None:
    """Serve the reference app on a database of your own.

    Needs QUART_TENANTS_DATABASE_URL and QUART_SECRET_KEY in the environment, and a database on
    which `quart-tenants init` has run. Ends on Ctrl-C or SIGTERM, after what is in flight.
    """
    server_config = load_server_config(config)
    check_startup(create_app)
    for address in bind_server(server_config, port):
        click.echo(f"serving on {address}")
    sys.exit(run_server(server_config, create_app))


@click.command("demo")
@click.option("--port", type=_PORT, default=5000, show_default=True, help="0 for any free one.")
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
    config = load_server_config()
    # One process: whatever ends it ends all.
    config.workers = 0
    (address,) = bind_server(config, port)
    data_dir = (data_dir or get_default_data_dir()).absolute()
    server = asyncio.run(prepare_demo(data_dir, fresh=fresh))
    try:
        _print_welcome(address.rpartition(":")[2], data_dir)
        status = run_server(config, create_app)
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


main = tenant_commands("quart-tenants")
main.help = (
    "One customer = one subdomain = one PostgreSQL schema.\n\nSettings are read from QUART_* in the environment."
)
main.context_settings["max_content_width"] = 80
click.version_option(version("quart-tenants"), prog_name="quart-tenants")(main)
for _command in (user_commands(), serve_command, demo_command):
    main.add_command(_command)

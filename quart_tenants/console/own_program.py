"""Serve the console by itself: `quart-tenants console`."""

import asyncio
import secrets
import socket
import sys

import click
from hypercorn.asyncio import serve
from hypercorn.config import Config
from quart import Quart

from quart_tenants.audit import audit
from quart_tenants.console.blueprint import add_headers, build_blueprint
from quart_tenants.console.console import Console
from quart_tenants.console.door import Door
from quart_tenants.console.runs import Run, Runs
from quart_tenants.console.samples import Sample, sample_metrics
from quart_tenants.errors import SettingError
from quart_tenants.postgres.registry.registry_tables import list_tenants
from quart_tenants.server.addresses import list_descriptors, open_addresses
from quart_tenants.server.applications import load_app
from quart_tenants.settings import Settings
from quart_tenants.web.commands.busy_tenants import Look, read_look
from quart_tenants.web.commands.records import changes_nothing, find_os_user
from quart_tenants.web.commands.running import find_settings
from quart_tenants.web.commands.serve import PORT
from quart_tenants.web.commands.worker_figures import ask_workers
from quart_tenants.web.lifecycle_hooks import TenantEvent
from quart_tenants.web.logs.log_setup import SERVER_LOGGER, configure_logging
from quart_tenants.web.state import find_state

_MOST_BYTES = 64 * 1024
"""Of a form."""


@click.command("console")
@click.option(
    "--app",
    "application",
    envvar="QUART_APP",
    help="Your app, such as notes.  [default: QUART_APP, or the reference app]",
)
@click.option("--port", type=PORT, default=0, show_default="any free one", help="On 127.0.0.1.")
@changes_nothing
def console_command(application: str | None, port: int) -> None:
    """Show the fleet in a browser of this machine, and act on it, until Ctrl-C.

    It prints an address that opens it for one browser. Commands that take long run as if you had typed them, and
    end with the console.
    """
    app, settings = (None, find_settings()) if application is None else load_app(application)
    config = Config()
    config.bind = ["127.0.0.1:0"]
    (address,) = open_addresses(config, port)
    _listen(config)
    config.errorlog = SERVER_LOGGER
    # A browser that watches a run would hold up the end.
    config.graceful_timeout = 1
    configure_logging(settings)
    own = make_console(settings, app, application)
    door = Door(find_os_user(), lambda end: _tell(f"the console is at http://{address}{end}"))
    asyncio.run(_serve(own, door, config))


def make_console(settings: Settings, app: Quart | None, name: str | None) -> Console:
    """Return a console that runs commands for *app*, of that *name*, or for none."""

    async def run_hooks(kind: str, event: TenantEvent) -> None:
        state = None if app is None else find_state(app)
        if app is None or state is None or not state.has_hooks(kind):
            return
        async with app.app_context(), state.running():
            await state.run_hooks(kind, event)

    def write_down_end(run: Run) -> None:
        if settings.audit:
            audit("console_run_ended", command=run.command, operator=run.operator, status=run.status)

    async def take_sample() -> tuple[Sample, Look]:
        if settings.metrics_bind is None:
            raise SettingError("TENANTS_METRICS_BIND", "is not set; set it for `serve` and for the console")
        told = await ask_workers(settings.metrics_bind)
        return sample_metrics(told), read_look(told)

    key = secrets.token_bytes(32)
    program = ["quart-tenants"] if name is None else ["quart", "--app", name, "tenants"]
    module = ["-m", "quart_tenants"] if name is None else ["-m", *program]
    return Console(
        settings,
        program=program,
        get_key=lambda: key,
        run_hooks=run_hooks,
        take_sample=take_sample,
        has_users=name is None,
        runs=Runs(module, write_down_end),
    )


def make_console_app(console: Console, door: Door) -> Quart:
    """Return the app that serves *console* to whom *door* lets in."""
    app = Quart(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = _MOST_BYTES
    app.before_request(door.let_in)
    app.after_request(add_headers)
    app.register_blueprint(build_blueprint(console, name="console", host=None, url_prefix=None))
    app.before_serving(door.announce)
    return app


async def _serve(console: Console, door: Door, config: Config) -> None:
    await console.open()
    try:
        # Before the address is told: without a registry there is nothing to show.
        await list_tenants(console.database)
        await serve(make_console_app(console, door), config)
    finally:
        await console.close()


def _listen(config: Config) -> None:
    """Let the system keep whoever opens the address sooner than Hypercorn serves it."""
    for descriptor in list_descriptors(config):
        listener = socket.socket(fileno=descriptor)
        listener.listen()
        listener.detach()


def _tell(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()

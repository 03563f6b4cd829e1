"""Make a command of a function that works for one tenant."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable

import click
from quart import Quart

from quart_tenants.errors import TenantError
from quart_tenants.tenant import Tenant
from quart_tenants.web.commands.running import Failures
from quart_tenants.web.state import TenantState
from quart_tenants.web.tenant_loops import TenantResult, for_each_tenant

logger = logging.getLogger(__name__)

TenantWork = Callable[[Tenant], Awaitable[object]]


def make_each_tenant_command(name: str, app: Quart, state: TenantState, work: TenantWork, jobs: int) -> click.Command:
    """Return a command that calls *work* for each tenant of *app*, prints what it returns, and fails if any failed."""

    async def run() -> list[TenantResult[object]]:
        async with app.app_context(), state.running():
            return await for_each_tenant(work, jobs=jobs)

    @click.command(name, help=inspect.getdoc(work))
    def command() -> None:
        results = asyncio.run(run())
        failures = Failures(len(results))
        for result in results:
            if result.error is None:
                click.echo(f"{result.tenant.slug}: {result.value}")
                continue
            if not isinstance(result.error, TenantError):
                # Its message alone, such as that of a KeyError, does not say where the mistake is.
                logger.error("the command %s failed for %s", name, result.tenant.slug, exc_info=result.error)
            failures.add(result.tenant.slug, result.error)
        failures.end()

    return command

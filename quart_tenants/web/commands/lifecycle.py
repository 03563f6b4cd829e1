"""The commands that suspend, resume and rename tenants, and change their settings."""

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.postgres.tenants.lifecycle import (
    change_tenant_settings,
    rename_tenant,
    resume_tenant,
    suspend_tenant,
)
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, parse_slug
from quart_tenants.web.commands.running import do_for_each, tell_hooks, with_database


class _Days(click.FloatRange):
    """A number of days. It refuses NaN, which passes every comparison."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return *value* as a number of days."""
        days = super().convert(value, param, ctx)
        if math.isnan(days):
            self.fail(f"{value!r} is no number of days.", param, ctx)
        return days


DAYS = _Days(0, 36500)
"""The type of an option in days, 100 years at most."""


@click.command("suspend")
@click.argument("slugs", metavar="SLUG...", nargs=-1, required=True)
@with_database
async def suspend_command(database: Database, settings: Settings, slugs: tuple[str, ...]) -> None:
    """Stop serving tenants and keep their data.

    Within two seconds their addresses answer as if there were no such tenant. Suspended tenants are still
    migrated and backed up. The command resume serves them again.
    """

    async def suspend(slug: Slug) -> None:
        tenant = await suspend_tenant(database, slug)
        click.echo(f"suspended {tenant.slug}")

    await do_for_each([parse_slug(slug) for slug in slugs], suspend)


@click.command("resume")
@click.argument("slugs", metavar="SLUG...", nargs=-1, required=True)
@with_database
async def resume_command(database: Database, settings: Settings, slugs: tuple[str, ...]) -> None:
    """Serve suspended tenants again within two seconds. Their sessions are still valid."""

    async def resume(slug: Slug) -> None:
        tenant = await resume_tenant(database, slug)
        click.echo(f"resumed {tenant.slug}")

    await do_for_each([parse_slug(slug) for slug in slugs], resume)


@click.command("rename")
@click.argument("slug")
@click.argument("new")
@click.option(
    "--redirect-days",
    type=DAYS,
    metavar="DAYS",
    help="How long the old address redirects to the new one.  [default: TENANTS_REDIRECT_DAYS]",
)
@with_database
async def rename_command(
    database: Database, settings: Settings, slug: str, new: str, redirect_days: float | None
) -> None:
    """Give tenant SLUG the subdomain NEW.

    Its schema keeps its name and its rows. Visitors must log in again. The old address leads to the new one
    for a while, and no other tenant can take it meanwhile.
    """
    days = settings.redirect_days if redirect_days is None else redirect_days
    tenant = await rename_tenant(database, parse_slug(slug), parse_slug(new), settings=settings, redirect_days=days)
    click.echo(f"renamed {slug} to {tenant.slug} (schema {tenant.schema}, at {tenant.slug}.{settings.domain})")
    await tell_hooks("renamed", tenant, former_slug=parse_slug(slug))
    if days > 0:
        click.echo(f"{slug} leads there until {show_day(days)}", err=True)


def show_day(days: float) -> str:
    """Return the day that is so many *days* from now, as a date in UTC."""
    return f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%d}"


@click.command("settings")
@click.argument("slug")
@click.argument("changes", metavar="[NAME=VALUE]...", nargs=-1)
@click.option("--remove", "removed", metavar="NAME", multiple=True, help="Remove this setting; may be repeated.")
@with_database
async def settings_command(
    database: Database, settings: Settings, slug: str, changes: tuple[str, ...], removed: tuple[str, ...]
) -> None:
    """Show or change what the app remembers about SLUG, such as its plan.

    A VALUE is JSON, or else a text: seats=5, plan=large, 'colours=["red"]', 'number="5"'. It prints one JSON object
    with all settings. The code of the app reads them as tenant.settings, and running workers within two seconds.
    """
    wanted: dict[str, Any] = dict.fromkeys(removed)
    for change in changes:
        name, separator, text = change.partition("=")
        if not separator or not name or name in wanted:
            raise click.UsageError(f"{change!r} is not NAME=VALUE, or its name is given twice")
        wanted[name] = _read_value(text)
    parsed = parse_slug(slug)
    tenant = await change_tenant_settings(database, parsed, wanted) if wanted else await get_tenant(database, parsed)
    click.echo(json.dumps(dict(tenant.settings), ensure_ascii=False))


def _read_value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    # To remove a setting there is --remove.
    return text if value is None else value

"""Show the fleet: the list of tenants, one tenant, sizes, the trash, domains, and failed logins."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

from quart import Blueprint, request
from quart.typing import ResponseReturnValue

from quart_tenants.console.actions import FLEET_ACTIONS, list_actions
from quart_tenants.console.console import Console
from quart_tenants.console.plots import Plot, find_points
from quart_tenants.console.showing import show, show_bytes
from quart_tenants.errors import InvalidRequestError
from quart_tenants.postgres.fleet.tenant_life import get_tenant_life
from quart_tenants.postgres.fleet.tenant_search import TenantFilter, find_tenants
from quart_tenants.postgres.fleet.tenant_sizes import Order, list_growth, list_sizes_by_day
from quart_tenants.postgres.migrations.migration_files import get_tenant_migrations
from quart_tenants.postgres.sessions.attacks import list_failed_logins
from quart_tenants.postgres.tenants.domains import list_domains
from quart_tenants.postgres.tenants.trash import list_trash
from quart_tenants.tenant import parse_slug

STATES = {
    "": "all",
    "active": "active",
    "suspended": "suspended",
    "behind": "behind",
    "failed": "failed to migrate",
    "drift": "drifted",
}
"""What the list may be narrowed to, and how that is called."""

_LONGEST = 300  # characters to look for
_MOST = 500
"""Rows of a page that has no pages."""
_MOST_SIZES = 100


def add_pages(blueprint: Blueprint, console: Console, host: str | None) -> None:
    """Let *blueprint* show the fleet at *host*."""

    @blueprint.get("/", host=host)
    async def fleet() -> ResponseReturnValue:
        text, state, after = (request.args.get(name, "").strip() for name in ("q", "state", "after"))
        if state not in STATES or not (text + after).isprintable() or len(text + after) > _LONGEST:
            raise InvalidRequestError(
                f"there is no such list: look for at most {_LONGEST} characters, and for tenants that are "
                f"{', '.join(name for name in STATES if name)}, or for all"
            )
        comparison = console.comparisons.find_newest()
        newest = len(get_tenant_migrations(console.settings))
        wanted = TenantFilter(
            text=text,
            suspended={"active": False, "suspended": True}.get(state),
            before_version=newest if state == "behind" else None,
            failed=state == "failed",
            slugs=list(comparison.drift if comparison else ()) if state == "drift" else None,
        )
        page = await find_tenants(console.database, wanted, after=after)
        return await show(
            console,
            "fleet.html",
            page=page,
            newest=newest,
            text=text,
            state=state,
            states=STATES,
            after=after,
            comparison=comparison,
            actions=FLEET_ACTIONS.values(),
        )

    @blueprint.get("/tenants/<slug>", host=host)
    async def tenant(slug: str) -> ResponseReturnValue:
        life = await get_tenant_life(console.database, parse_slug(slug))
        comparison = console.comparisons.find_newest()
        done = request.args.get("done")
        days = await list_sizes_by_day(console.database, life.id)
        return await show(
            console,
            "tenant.html",
            life=life,
            newest=len(get_tenant_migrations(console.settings)),
            actions=list_actions(life),
            done=console.read_signed(done)[0] if done else None,
            grown=next(iter(await list_growth(console.database, tenant_id=life.id)), None),
            plot=_draw_sizes(days),
            comparison=comparison,
            differences=None if comparison is None else comparison.drift.get(life.slug, ()),
            kept_until=None if life.dropped_at is None else _find_end(console, life.dropped_at),
        )

    @blueprint.get("/sizes", host=host)
    async def sizes() -> ResponseReturnValue:
        order: Order = "growth" if request.args.get("by") == "growth" else "size"
        found = await list_growth(console.database, order=order, limit=_MOST_SIZES)
        return await show(console, "sizes.html", sizes=found, order=order)

    @blueprint.get("/trash", host=host)
    async def trash() -> ResponseReturnValue:
        found = await list_trash(console.database)
        now = datetime.now(UTC)
        left = {one.slug: max((_find_end(console, one.dropped_at) - now).days, 0) for one in found}
        return await show(
            console, "trash.html", trash=found[:_MOST], more=len(found) - _MOST, left=left, purge=FLEET_ACTIONS["purge"]
        )

    @blueprint.get("/domains", host=host)
    async def domains() -> ResponseReturnValue:
        found = await list_domains(console.database)
        return await show(console, "domains.html", domains=found[:_MOST], more=len(found) - _MOST)

    @blueprint.get("/logins", host=host)
    async def logins() -> ResponseReturnValue:
        return await show(console, "logins.html", logins=await list_failed_logins(console.database))


def _draw_sizes(days: Mapping[date, int]) -> Plot | None:
    """Return how large a tenant was, by day; None if it was never measured."""
    if not days:
        return None
    sizes = list(days.values())
    points = find_points(sizes, [day.toordinal() for day in days])
    return Plot(f"Size since {min(days)}", show_bytes(sizes[-1]), show_bytes(max(sizes)), points)


def _find_end(console: Console, dropped_at: datetime) -> datetime:
    """Return until when a tenant stays in the trash."""
    return dropped_at + timedelta(days=console.settings.trash_days)

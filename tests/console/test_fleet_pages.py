"""What the console shows: the list with its filters, one tenant, the trash, domains and failed logins."""

import html
import re
from dataclasses import replace

import pytest
from quart.typing import TestClientProtocol as Browser

from quart_tenants.console.fleet_watch import FleetWatch
from quart_tenants.measures.sums import Worker
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.tenant_search import TenantFilter, find_tenants
from quart_tenants.postgres.tenants.lifecycle import suspend_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug
from tests.console.conftest import OwnConsole
from tests.console.pages import read
from tests.support.databases import execute
from tests.support.patience import wait_until
from tests.web.commands.test_worker_figures import telling

pytestmark = pytest.mark.slow

NASTY = "\"><script>alert(1)</script>'\n{{ 7 * 7 }}"


async def list_slugs(client: Browser, query: str) -> list[str]:
    """Return the slugs on a page of the list."""
    page = await read(await client.get(f"/?{query}"))
    return re.findall(r'<th scope="row"><a href="/tenants/[^"]+">([^<]+)</a>', page)


async def test_list_is_searched_and_narrowed(client: Browser, database: Database, database_url: str) -> None:
    """The list shows who has the text in the slug, the name or a domain, and is in the state that was asked for."""
    await suspend_tenant(database, parse_slug("globex"))
    await execute(
        database_url,
        "INSERT INTO quart_tenants.migration_failures (tenant_id, version, migration, reason)"
        " SELECT id, 1, '0002_x.sql', 'it broke' FROM quart_tenants.tenants WHERE slug = 'company1'",
        "INSERT INTO quart_tenants.domains (domain, tenant_id, token)"
        " SELECT 'shop.test', id, 'x' FROM quart_tenants.tenants WHERE slug = 'company2'",
        "DELETE FROM quart_tenants.applied_migrations WHERE schema_name = 'acme'",
    )

    everybody = ["acme", "company1", "company2", "globex"]
    assert await list_slugs(client, "") == everybody
    assert await list_slugs(client, "q=COMPANY") == ["company1", "company2"]
    assert await list_slugs(client, "q=Globex") == ["globex"]
    assert await list_slugs(client, "q=shop.t") == ["company2"]
    assert await list_slugs(client, "q=%25") == []
    assert await list_slugs(client, "state=suspended") == ["globex"]
    assert await list_slugs(client, "state=active") == ["acme", "company1", "company2"]
    assert await list_slugs(client, "state=failed") == ["company1"]
    assert await list_slugs(client, "state=behind") == ["acme"]
    assert await list_slugs(client, "state=drift") == []
    assert await list_slugs(client, "after=company1") == ["company2", "globex"]
    for wrong in ("state=odd", "q=a%00b", f"q={'x' * 400}"):
        assert (await client.get(f"/?{wrong}")).status_code == 400


async def test_list_comes_page_by_page(database: Database) -> None:
    """A page says after which slug the next one begins, and the last page does not."""
    first = await find_tenants(database, TenantFilter(), limit=3)
    second = await find_tenants(database, TenantFilter(), after=first.last or "", limit=3)

    assert [tenant.slug for tenant in first.tenants] == ["acme", "company1", "company2"]
    assert first.last == "company2"
    assert ([tenant.slug for tenant in second.tenants], second.last) == (["globex"], None)
    assert all(tenant.size is not None and tenant.size.bytes > 0 for tenant in first.tenants)


async def test_list_does_not_wait_for_a_locked_table(client: Browser, database: Database) -> None:
    """While somebody changes a table the list is shown without the sizes."""
    async with database.connection() as connection:
        await connection.execute("LOCK TABLE acme.app_user IN ACCESS EXCLUSIVE MODE")
        page = await read(await client.get("/"))
        life = await read(await client.get("/tenants/acme"))

    assert "a table is locked" in page
    assert "not known now" in life


async def test_names_are_shown_as_they_are_and_run_nothing(client: Browser, database_url: str) -> None:
    """A name, a reason and a user with markup in them are text on every page."""
    quoted = NASTY.replace("'", "''")
    await execute(
        database_url,
        f"UPDATE quart_tenants.tenants SET display_name = '{quoted}' WHERE slug = 'acme'",
        "INSERT INTO quart_tenants.migration_failures (tenant_id, version, migration, reason)"
        f" SELECT id, 1, '{quoted}', '{quoted}' FROM quart_tenants.tenants WHERE slug = 'acme'",
        "INSERT INTO quart_tenants.ended_sessions (tenant_id, username, session_id, forget_at)"
        f" SELECT id, '{quoted}', '', now() + interval '1 day' FROM quart_tenants.tenants WHERE slug = 'acme'",
        "UPDATE quart_tenants.tenants SET dropped_at = now(), schema_before_drop = 'x' WHERE slug = 'globex'",
        f"UPDATE quart_tenants.tenants SET display_name = '{quoted}' WHERE slug = 'globex'",
    )
    for path, seen in (("/", 2), ("/tenants/acme", 4), ("/trash", 1), ("/tenants/acme/suspend", 0)):
        page = await read(await client.get(path))
        assert "<script>alert" not in page, path
        assert html.unescape(page).count(NASTY) >= seen, path
        assert "49" not in page or "{{ 7 * 7 }}" in page


async def test_page_of_a_tenant_has_its_life(client: Browser, database: Database) -> None:
    """A tenant's page says what the registry remembers: made, migrated, suspended; the size and the version."""
    await suspend_tenant(database, parse_slug("company1"))
    page = await read(await client.get("/tenants/company1"))

    for words in ("made", "migrated by 0001_", "suspended", "0001", "company1", "about"):
        assert words in page
    assert (await client.get("/tenants/nobody")).status_code == 400
    assert (await client.get("/tenants/Not%20a%20slug")).status_code == 400


async def test_growth_is_listed_and_drawn(client: Browser, database: Database, database_url: str) -> None:
    """Whoever was measured is listed with the growth, and a tenant's page draws its sizes by day."""
    assert "No tenant was measured yet" in await read(await client.get("/sizes"))
    assert "<polyline" not in await read(await client.get("/tenants/acme"))

    await execute(
        database_url,
        "INSERT INTO quart_tenants.tenant_sizes (tenant_id, day, bytes)"
        " SELECT id, DATE '2026-01-01' + day, 1000000 * (day + 1)"
        " FROM quart_tenants.tenants, generate_series(0, 30, 10) AS day WHERE slug = 'acme'",
        "INSERT INTO quart_tenants.tenant_sizes (tenant_id, day, bytes)"
        " SELECT id, '2026-01-31', 99000000 FROM quart_tenants.tenants WHERE slug = 'globex'",
    )
    largest = await read(await client.get("/sizes"))
    grown = await read(await client.get("/sizes?by=growth"))
    page = await read(await client.get("/tenants/acme"))

    assert largest.index("globex") < largest.index("acme")
    assert grown.index("acme") < grown.index("globex")
    assert "<td>31 MB</td>" in largest
    assert "<td>+10 MB</td><td>+30 MB</td>" in largest
    assert "<td>not known yet</td>" in largest
    assert "+10 MB in 7 days, +30 MB in 30 days, as of 2026-01-31" in page
    assert 'points="0.0,58.1 100.0,38.7 200.0,19.4 300.0,0.0"' in page


async def test_headline_is_that_of_status(own: OwnConsole, client: Browser, database_url: str) -> None:
    """The console says what needs doing in the words of `status`, which asks the same function."""
    await execute(database_url, "DELETE FROM quart_tenants.applied_migrations WHERE schema_name = 'acme'")

    async def find_news() -> str | None:
        own.console.fleet.forget()
        page = await read(await client.get("/"))
        return page if "needs doing: tenants behind" in page else None

    assert "run quart-tenants migrate" in await wait_until(find_news)


async def test_headline_tells_of_workers_in_trouble(database: Database, settings: Settings) -> None:
    """So does `status`: a worker that hangs needs doing in the console, too."""
    async with telling([Worker(None, starts=3, is_up=False)]) as told:
        watch = FleetWatch(lambda: database, replace(settings, metrics_bind=told.metrics_bind))
        news = await watch.get_news(patience=60)
        await watch.close()

    assert news is not None
    assert news.headline == "1 thing needs doing: workers"


async def test_failed_logins_are_counted_without_names(client: Browser, database_url: str) -> None:
    """The page says where many logins fail, and who is held up, but not which names were typed."""
    assert "None." in await read(await client.get("/logins"))
    await execute(
        database_url,
        "INSERT INTO quart_tenants.failed_logins (tenant_id, counted, failures, wait_until, forget_at)"
        " SELECT id, 'secret-digest', 77, now() + interval '1 hour', now() + interval '1 day'"
        " FROM quart_tenants.tenants WHERE slug = 'acme'",
        "INSERT INTO quart_tenants.failed_logins (tenant_id, counted, failures, wait_until, forget_at)"
        " VALUES (0, 'secret-digest', 3, now(), now() + interval '1 day')",
    )
    page = await read(await client.get("/logins"))

    assert page.index("acme") < page.index("(the domain itself)")
    assert ">77<" in page
    assert "secret" not in page


async def test_domains_are_listed(client: Browser, database_url: str) -> None:
    """Each domain is there with its tenant and its state."""
    await execute(
        database_url,
        "INSERT INTO quart_tenants.domains (domain, tenant_id, token, verified_at)"
        " SELECT 'shop.test', id, 'tok', now() FROM quart_tenants.tenants WHERE slug = 'company2'",
    )
    page = await read(await client.get("/domains"))

    assert "shop.test" in page
    assert "served" in page
    assert "tok" not in page.replace("token", "")

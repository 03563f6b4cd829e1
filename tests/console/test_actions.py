"""What an operator does in the console: asked first, done as by the command, and shown with its remedy if it fails."""

import html

import pytest
from quart.typing import TestClientProtocol as Browser

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.postgres.tenants.purge import purge_trash
from quart_tenants.postgres.tenants.trash import drop_tenant, list_trash
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug
from tests.console.conftest import OwnConsole
from tests.console.pages import confirm, find_command, find_token, read
from tests.support.databases import execute

pytestmark = pytest.mark.slow

ACME = parse_slug("acme")


async def test_tenant_is_suspended_and_resumed(client: Browser, database: Database) -> None:
    """Each action says the command that does the same, does it, and goes on to the page that shows it."""
    page = await read(await client.get("/tenants/acme/suspend"))
    assert find_command(page) == "quart-tenants suspend acme"
    assert "Stop serving tenants and keep their data." in page

    done = await confirm(client, "/tenants/acme/suspend")
    shown = await read(await client.get(done.headers["Location"]))
    assert (await get_tenant(database, ACME)).suspended
    assert "suspended acme" in shown
    assert "/tenants/acme/resume" in shown
    assert "/tenants/acme/suspend" not in shown

    await confirm(client, "/tenants/acme/resume")
    assert not (await get_tenant(database, ACME)).suspended


async def test_asking_changes_nothing(client: Browser, database: Database) -> None:
    """Following every link of every page does nothing."""
    for path in ("suspend", "drop?next=yes", "rename?new=x1&next=yes", "end-sessions?username=u&next=yes", "undrop"):
        assert (await client.get(f"/tenants/acme/{path}")).status_code == 200

    tenant = await get_tenant(database, ACME)
    assert not tenant.suspended
    assert await list_trash(database) == []


async def test_drop_asks_for_the_name(client: Browser, database: Database) -> None:
    """A tenant is dropped only by who types its name, as at the command; undrop brings it back."""
    fields = {"next": "yes"}
    wrong = await confirm(client, "/tenants/acme/drop", answer="globex", **fields)
    assert wrong.status_code == 400
    assert "that is not acme; nothing was done" in await read(wrong)
    assert await list_trash(database) == []

    assert find_command(await read(await client.get("/tenants/acme/drop?next=yes"))) == "quart-tenants drop acme --yes"
    done = await confirm(client, "/tenants/acme/drop", answer="acme", **fields)
    assert done.status_code == 303
    assert [tenant.slug for tenant in await list_trash(database)] == ["acme"]
    assert "<td>29</td>" in await read(await client.get("/trash"))

    await confirm(client, "/tenants/acme/undrop")
    assert await list_trash(database) == []


async def test_two_operators_at_once(own: OwnConsole, database: Database) -> None:
    """Who comes second reads what has become of the tenant, with the command's words and a status that says so."""
    first, second = await own.open(), await own.open()
    address = "/tenants/acme/rename?new=other&next=yes"
    token = find_token(await read(await second.get(address)))

    assert (await confirm(first, "/tenants/acme/rename", new="newname", next="yes")).status_code == 303
    late = await second.post(address, form={"token": token})

    assert late.status_code == 400
    assert "no tenant answers at 'acme'" in html.unescape(await read(late))
    assert (await get_tenant(database, parse_slug("newname"))).schema.name == "acme"


async def test_tenant_that_was_dropped_meanwhile(client: Browser, database: Database) -> None:
    """The error names the state and the remedy, as the command does."""
    token = find_token(await read(await client.get("/tenants/acme/suspend")))
    await drop_tenant(database, ACME)

    late = await client.post("/tenants/acme/suspend", form={"token": token})

    assert late.status_code == 409
    assert "trash" in await read(late)


async def test_another_tenant_of_the_same_name_is_not_touched(
    client: Browser, database: Database, database_url: str, settings: Settings
) -> None:
    """A confirmation is for the tenant that was seen, and not for the next one of its name."""
    token = find_token(await read(await client.get("/tenants/acme/suspend")))
    await drop_tenant(database, ACME)
    await purge_trash(database, settings=settings, slugs=[ACME])
    await execute(database_url, "UPDATE quart_tenants.tenants SET slug = 'acme' WHERE slug = 'globex'")

    late = await client.post("/tenants/acme/suspend", form={"token": token})

    assert late.status_code == 400
    assert not (await get_tenant(database, ACME)).suspended


WRONG = [
    "/tenants/acme/rename?new=&next=yes",
    "/tenants/acme/rename?new=Not%20a%20slug&next=yes",
    "/tenants/acme/rename?new=fine&redirect_days=nan&next=yes",
    "/tenants/acme/rename?new=fine&redirect_days=-1&next=yes",
    "/tenants/acme/end-sessions?username=a%0ab&next=yes",
    "/fleet/backup?folder=a%00b",
    "/fleet/purge?older_than=yesterday",
    "/fleet/backup?folder=" + "x" * 2000,
]


async def test_wrong_field_is_named(client: Browser) -> None:
    """What cannot be used comes back in its form, with the reason, and nothing is done."""
    for address in WRONG:
        answer = await client.get(address)
        page = await read(answer)
        assert answer.status_code == 400, address
        assert 'role="alert"' in page
        assert "Go on" in page


async def test_sessions_of_a_user_are_ended(client: Browser) -> None:
    """A user is logged out everywhere, and the tenant's page says so."""
    address = "/tenants/acme/end-sessions?username=ann%3Cscript%3E&next=yes"
    assert find_command(await read(await client.get(address))) == "quart-tenants user logout acme 'ann<script>'"

    done = await confirm(client, "/tenants/acme/end-sessions", username="ann<script>", next="yes")
    page = await read(await client.get(done.headers["Location"]))

    assert page.count("ann&lt;script&gt;") == 2
    assert "<script>" not in page

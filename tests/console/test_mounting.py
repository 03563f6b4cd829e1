"""The console as a part of an app: for operators at the domain itself, and for nobody else."""

import json
import logging
from typing import Any

import pytest
from quart import Quart
from quart.typing import TestClientProtocol as Browser

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.tenant import parse_slug
from quart_tenants.web.state import find_state
from tests.console.conftest import make_app
from tests.console.pages import find_command, find_token, read

pytestmark = pytest.mark.slow

APEX = {"Host": "localhost"}
ACME = {"Host": "acme.localhost"}
PATHS = ["/console/", "/console/tenants/acme", "/console/tenants/acme/drop", "/console/static/console.css"]


async def log_in(app: Quart, user: str, host: dict[str, str]) -> Browser:
    """Return a browser that is logged in there. Like a careless proxy it sends its cookies to every host."""
    client = app.test_client()
    answer = await client.post(f"/login/{user}", headers=host)
    assert answer.status_code == 200
    return client


async def test_console_is_there_for_operators_only(mounted: Quart) -> None:
    """An operator sees it; a stranger and a user who is none get 404, as where there is nothing."""
    operator = await log_in(mounted, "ann", APEX)
    user = await log_in(mounted, "eve", APEX)
    nothing = await read(await user.get("/console/nothing", headers=APEX))

    for path in PATHS:
        assert (await operator.get(path, headers=APEX)).status_code == 200
        for client in (user, mounted.test_client()):
            answer = await client.get(path, headers=APEX)
            assert answer.status_code == 404
            assert await read(answer) == nothing


async def test_console_is_at_no_tenants_host(mounted: Quart) -> None:
    """Who is called like an operator at a tenant gets nothing, neither there nor at the domain."""
    client = await log_in(mounted, "ann", ACME)

    for path in PATHS:
        assert (await client.get(path, headers=ACME)).status_code == 404
        at_apex = await client.get(path, headers=APEX)
        assert at_apex.status_code == 400
        assert json.loads(await read(at_apex))["code"] == "wrong_tenant"


async def test_form_from_another_origin_is_refused(mounted: Quart, database: Database) -> None:
    """A tenant's page cannot post to the console, although a browser sends the operator's cookie along."""
    client = await log_in(mounted, "ann", APEX)
    token = find_token(await read(await client.get("/console/tenants/globex/suspend", headers=APEX)))

    refused = await client.post(
        "/console/tenants/globex/suspend", headers=APEX | {"Sec-Fetch-Site": "same-site"}, form={"token": token}
    )
    assert refused.status_code == 403
    assert not (await get_tenant(database, parse_slug("globex"))).suspended

    # Negative control: the same form from the console itself.
    done = await client.post(
        "/console/tenants/globex/suspend", headers=APEX | {"Sec-Fetch-Site": "same-origin"}, form={"token": token}
    )
    assert done.status_code == 303
    assert (await get_tenant(database, parse_slug("globex"))).suspended


async def test_form_of_another_operator_is_refused(mounted: Quart, database: Database) -> None:
    """What bob was asked, ann cannot confirm, nor can anybody confirm without being asked."""
    ann, bob = await log_in(mounted, "ann", APEX), await log_in(mounted, "bob", APEX)
    path = "/console/tenants/acme/suspend"
    token = find_token(await read(await bob.get(path, headers=APEX)))

    stolen = await ann.post(path, headers=APEX, form={"token": token})
    invented = await ann.post(path, headers=APEX, form={"token": f"{token}x"})
    missing = await ann.post(path, headers=APEX)
    elsewhere = await bob.post("/console/tenants/globex/suspend", headers=APEX, form={"token": token})

    assert [answer.status_code for answer in (stolen, invented, missing, elsewhere)] == [400] * 4
    assert "nothing was done" in await read(stolen)
    for slug in ("acme", "globex"):
        assert not (await get_tenant(database, parse_slug(slug))).suspended


async def test_action_is_written_down_with_its_operator(mounted: Quart, caplog: pytest.LogCaptureFixture) -> None:
    """The audit line says who, what and by which command line, also where the action is refused."""
    client = await log_in(mounted, "ann", APEX)
    with caplog.at_level(logging.INFO, "quart_tenants.audit"):
        for _ in range(2):
            await ask_and_confirm(client, "/console/tenants/acme/rename?new=newname&next=yes")
    facts = [getattr(record, "facts", {}) for record in caplog.records if "console_action" in record.getMessage()]

    assert facts[0] == {
        "action": "rename",
        "tenant": "acme",
        "command": "quart --app APP tenants rename acme newname",
        "operator": "ann",
        "address": facts[0].get("address"),
        "outcome": "ok",
    }
    assert facts[1:] == []


async def ask_and_confirm(client: Browser, address: str) -> int:
    """Confirm an action, and return the status of what comes."""
    asked = await client.get(address, headers=APEX)
    if asked.status_code != 200:
        return asked.status_code
    form = {"token": find_token(await read(asked))}
    return (await client.post(address, headers=APEX, form=form)).status_code


async def test_hooks_of_the_app_are_called(mounted: Quart) -> None:
    """A tenant that is renamed or dropped in the console is told to the app, as by a command."""
    told: list[tuple[str, str | None]] = []
    state = find_state(mounted)
    assert state is not None
    state.on_renamed(lambda event: told.append((event.slug, event.former_slug)))
    client = await log_in(mounted, "ann", APEX)

    assert await ask_and_confirm(client, "/console/tenants/acme/rename?new=newname&next=yes") == 303
    assert told == [("newname", "acme")]


async def test_command_that_takes_long_is_shown_and_not_run(mounted: Quart) -> None:
    """A worker migrates nobody: the page has the command line and no button, and a form of one's own is refused."""
    client = await log_in(mounted, "ann", APEX)
    page = await read(await client.get("/console/fleet/migrate", headers=APEX))
    runs = await client.get("/console/runs", headers=APEX)

    assert find_command(page) == "quart --app APP tenants migrate"
    assert 'name="token"' not in page
    assert runs.status_code == 404


async def test_operator_is_a_name(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A check that returns True instead of a name is a mistake that lets nobody in, and the log says what is wrong."""

    async def is_operator() -> Any:
        return True

    app = make_app(database_url, is_operator)
    async with app.test_app():
        answer = await app.test_client().get("/console/", headers=APEX)

    assert answer.status_code == 500
    assert "is_operator must return the operator's name" in caplog.text

"""What a customer of the notes sees, and what strangers do not."""

import asyncio
import shutil
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from notes import HERE, MAX_ATTACHMENT_BYTES, clean_name, write_digest, write_line
from quart import Quart
from quart.testing.connections import WebsocketDisconnectError
from quart.typing import TestClientProtocol as StrangersClient

from quart_tenants import QuartTenants, Tenant, end_user_sessions, for_each_tenant
from quart_tenants.admin import (
    add_domain,
    drop_tenant,
    parse_domain,
    parse_slug,
    purge_trash,
    rename_tenant,
    suspend_tenant,
)
from quart_tenants.testing import ClientMaker, TenantClient, hunt_leaks

APEX = {"Host": "localhost"}
FORM = {"slug": "newco", "email": "Ada@newco.test", "password": "a long password"}
BROWSER = {"Accept": "text/html"}
ADD_USER = "INSERT INTO users (email, password_hash) VALUES ('ada@acme.test', '') RETURNING id"


async def sign_up(client: TenantClient | StrangersClient, **changes: str) -> tuple[int, str]:
    """Send the form of the sign-up; return the status and the page."""
    answer = await client.post("/sign-up", form=FORM | changes, headers=APEX | BROWSER)
    return answer.status_code, str(await answer.get_data(as_text=True))


@pytest.fixture
async def ada(client_for: ClientMaker, tenants: QuartTenants, first_tenant: Tenant) -> TenantClient:
    """Somebody who is signed in at the first tenant."""
    async with tenants.database.tenant_connection(first_tenant) as connection:
        number = await connection.fetchval(ADD_USER)
    return await client_for(first_tenant, user=str(number))


async def write(client: TenantClient | StrangersClient, body: str, form_id: str = "") -> int:
    """Send the form of a new note; return the status."""
    answer = await client.post("/notes", form={"body": body, "form_id": form_id or str(uuid.uuid4())})
    return answer.status_code


async def test_sign_up_makes_the_tenant_and_its_first_user(
    tenants_app: Quart, tenants: QuartTenants, client_for: ClientMaker
) -> None:
    """Whoever signs up can sign in at once, and a second form says that the name is taken."""
    client = tenants_app.test_client()
    status, page = await sign_up(client)
    assert status == 201
    assert "http://newco.localhost/sign-in" in page
    newco = await client_for(tenants.registry.get_tenant(parse_slug("newco")))
    signed_in = await newco.post("/sign-in", form={"email": "ada@newco.test", "password": FORM["password"]})
    assert signed_in.status_code == 303
    assert "Nothing yet" in await (await newco.get("/")).get_data(as_text=True)
    assert await sign_up(client) == (409, page_with("This name is taken.", await sign_up(client)))


def page_with(text: str, answer: tuple[int, str]) -> str:
    """Return the page of *answer*, in which *text* stands."""
    assert text in answer[1]
    return answer[1]


@pytest.mark.parametrize(
    ("slug", "status"),
    [("acme", 409), (" ACME ", 409), ("www", 400), ("common", 400), ("müller", 400), ("", 400), ("a b", 400)],
)
async def test_sign_up_says_what_is_wrong_with_a_name(tenants_app: Quart, slug: str, status: int) -> None:
    """A name that cannot be had is answered by the form again, with a sentence in a customer's words."""
    answer = await sign_up(tenants_app.test_client(), slug=slug)

    assert answer[0] == status
    assert ("This name is taken." if status == 409 else "This cannot be an address.") in answer[1]
    assert "schema" not in answer[1]


async def test_name_that_rests_is_taken(tenants_app: Quart, tenants: QuartTenants) -> None:
    """The name of a tenant in the trash is taken."""
    await drop_tenant(tenants.database, parse_slug("acme"))

    assert "This name is taken." in (await sign_up(tenants_app.test_client(), slug="acme"))[1]


async def test_two_sign_ups_at_once_make_one_tenant(tenants_app: Quart) -> None:
    """One gets the name, and the other one is told."""
    answers = await asyncio.gather(*(sign_up(tenants_app.test_client()) for _ in range(2)))

    assert sorted(status for status, _ in answers) == [201, 409]


async def test_wrong_password_shows_the_form_again(
    tenants_app: Quart, tenants: QuartTenants, client_for: ClientMaker
) -> None:
    """A wrong password and an unknown address are told alike."""
    await sign_up(tenants_app.test_client())
    newco = await client_for(tenants.registry.get_tenant(parse_slug("newco")))

    for email in ("ada@newco.test", "eve@newco.test"):
        answer = await newco.post("/sign-in", form={"email": email, "password": "wrong"})
        assert answer.status_code == 401
        assert "or the password is wrong" in await answer.get_data(as_text=True)


NOBODY = "Nobody keeps notes at this address at the moment."


async def read_page(app: Quart, host: str) -> tuple[int, str]:
    """Return what a browser reads at the sign-in page of *host*."""
    answer = await app.test_client().get("/sign-in", headers=BROWSER | {"Host": host})
    return answer.status_code, str(await answer.get_data(as_text=True))


@pytest.mark.parametrize(("host", "status"), [("nobody.localhost", 400), ("elsewhere.test", 404), ("192.0.2.1", 404)])
async def test_host_of_nobody_is_answered_with_a_page(tenants_app: Quart, host: str, status: int) -> None:
    """A browser at a host that nobody has reads what may be wrong, in the app's own style."""
    assert (await read_page(tenants_app, host))[0] == status
    assert NOBODY in (await read_page(tenants_app, host))[1]
    style = await tenants_app.test_client().get("/static/style.css", headers={"Host": host})
    assert style.status_code == 200


async def test_suspended_and_dropped_tenants_are_answered_with_a_page(
    tenants_app: Quart, tenants: QuartTenants, first_tenant: Tenant, second_tenant: Tenant
) -> None:
    """A tenant that is not served looks as one that never was, also when it has left the trash."""
    assert NOBODY not in (await read_page(tenants_app, "acme.localhost"))[1]
    await suspend_tenant(tenants.database, first_tenant.slug)
    await drop_tenant(tenants.database, second_tenant.slug)
    await tenants.registry.refresh()

    for host in ("acme.localhost", "globex.localhost"):
        status, page = await read_page(tenants_app, host)
        assert (status, NOBODY in page) == (400, True)

    await purge_trash(tenants.database, settings=tenants.settings, slugs=[second_tenant.slug])
    await tenants.registry.refresh()
    assert NOBODY in (await read_page(tenants_app, "globex.localhost"))[1]
    # Somebody may still have the old address, so a moment has to pass before it is another customer's.
    assert "try again shortly" in (await sign_up(tenants_app.test_client(), slug="globex"))[1]


async def test_old_address_of_a_customer_leads_to_the_new_one(
    tenants_app: Quart, tenants: QuartTenants, first_tenant: Tenant
) -> None:
    """Links go on working after a change of the name, and nobody else can get the old one."""
    await rename_tenant(tenants.database, first_tenant.slug, parse_slug("zenith"), settings=tenants.settings)
    await tenants.registry.refresh()

    answer = await tenants_app.test_client().get("/sign-in", headers=BROWSER | {"Host": "acme.localhost"})

    assert (answer.status_code, answer.headers["Location"]) == (308, "http://zenith.localhost/sign-in")
    assert "This name is taken." in (await sign_up(tenants_app.test_client(), slug="acme"))[1]


async def test_customers_whose_tables_are_behind_are_asked_to_wait(
    tenants_app_factory: Callable[[], Quart],
    tenants: QuartTenants,
    tenants_database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """New code that comes before its migration asks visitors to wait, and serves whoever is migrated."""
    shutil.copytree(HERE / "migrations", tmp_path / "migrations")
    (tmp_path / "migrations" / "0003_colour.sql").write_text("ALTER TABLE notes ADD COLUMN colour text")
    monkeypatch.setenv("QUART_TENANTS_DATABASE_URL", tenants_database_url)
    monkeypatch.setenv("QUART_TENANTS_MIGRATIONS_DIR", str(tmp_path / "migrations"))
    new_code = tenants_app_factory()
    async with new_code.test_app():
        status, page = await read_page(new_code, "acme.localhost")
        migrated = await sign_up(new_code.test_client())

        assert status == 503
        assert "One moment" in page
        assert "being updated; try again shortly" in page
        assert migrated[0] == 201
        assert (await read_page(new_code, "newco.localhost"))[0] == 200


async def test_form_that_is_sent_twice_makes_one_note(ada: TenantClient) -> None:
    """The second one changes nothing, and is answered like the first."""
    form_id = str(uuid.uuid4())

    assert [await write(ada, "once", form_id) for _ in range(2)] == [303, 303]
    assert len((await (await ada.get("/api/notes")).get_json())["notes"]) == 1


async def test_search_finds_words_and_signs(ada: TenantClient) -> None:
    """Case does not count, and a percent sign is a percent sign."""
    await write(ada, "Buy Milk")
    await write(ada, "100% <b>sure</b>")

    assert "Buy Milk" in await (await ada.get("/?q=milk")).get_data(as_text=True)
    page = await (await ada.get("/?q=%25")).get_data(as_text=True)
    assert "100% &lt;b&gt;sure" in page
    assert "Buy Milk" not in page


async def test_attachment_has_a_limit_and_a_clean_name(ada: TenantClient) -> None:
    """A path in a name leads nowhere, and too large a file is answered with a page."""
    await write(ada, "with files")
    sizes = (("../../x", 10, 303), ("big", MAX_ATTACHMENT_BYTES + 1, 413), ("20 MB", 20_000_000, 413))
    for name, size, status in sizes:
        # Written by hand, because Quart's test client takes seconds to write 20 MB, in which nothing else runs.
        head = f'--edge\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        headers = BROWSER | {"Content-Type": "multipart/form-data; boundary=edge"}
        body = head.encode() + b"x" * size + b"\r\n--edge--\r\n"
        answer = await ada.post("/notes/1/attachments", data=body, headers=headers)
        assert answer.status_code == status, name

    assert "A file may have 5 MB at most." in await answer.get_data(as_text=True)
    stored = await ada.get("/attachments/1")
    assert stored.headers["Content-Disposition"].endswith("filename=x")
    assert (await ada.get("/attachments/2")).status_code == 404


def test_names_of_files_are_cleaned() -> None:
    """Only the last part is kept, in any alphabet."""
    assert [clean_name(name) for name in ("../../x", "C:\\a\\ä.txt", "..", "", "a\r\nb")] == [
        "x",
        "ä.txt",
        "file",
        "file",
        "ab",
    ]


async def test_export_is_a_table_without_formulas(ada: TenantClient) -> None:
    """What a spreadsheet would compute is marked as a text."""
    await write(ada, "=1+1")

    assert (await (await ada.get("/notes.csv")).get_data(as_text=True)).endswith("'=1+1\r\n")
    assert write_line("@x", "y") == "'@x,y\r\n"


async def test_page_hears_of_a_new_note(ada: TenantClient) -> None:
    """A message comes when the note is saved."""
    async with ada.websocket("/live") as talk:
        assert await talk.receive_json() == {"live": True}
        await write(ada, "news")

        assert await talk.receive_json() == {"added": 1}


async def end_all_sessions(ada: TenantClient, tenants: QuartTenants) -> None:
    """Do what a new password does."""
    await end_user_sessions(tenants.database, ada.tenant, "1")


async def sign_out(ada: TenantClient, tenants: QuartTenants) -> None:
    """Sign out in another window."""
    await ada.post("/sign-out")


async def suspend(ada: TenantClient, tenants: QuartTenants) -> None:
    """Do what an operator does to a customer who does not pay."""
    await suspend_tenant(tenants.database, ada.tenant.slug)


@pytest.mark.parametrize("end", [end_all_sessions, sign_out, suspend])
async def test_page_that_is_open_ends_with_its_session(
    ada: TenantClient, tenants: QuartTenants, end: Callable[[TenantClient, QuartTenants], Awaitable[None]]
) -> None:
    """Whoever may read no more gets no message: the websocket is closed by 1008, which the page understands."""
    async with ada.websocket("/live") as talk:
        assert await talk.receive_json() == {"live": True}
        await end(ada, tenants)
        await tenants.registry.refresh()

        with pytest.raises(WebsocketDisconnectError, match="1008"):
            await talk.receive_json()


async def test_invitation_lets_a_colleague_join_here_only(
    ada: TenantClient, client_for: ClientMaker, first_tenant: Tenant, second_tenant: Tenant
) -> None:
    """The link works at its tenant, once, and a changed one nowhere."""
    page = await (await ada.post("/invitations", form={"email": "Bob@x.test"})).get_data(as_text=True)
    path = page.partition('href="http://acme.localhost')[2].partition('"')[0]
    bob = await client_for(first_tenant)

    assert (await (await client_for(second_tenant)).get(path)).status_code == 404
    assert (await bob.get(path + "x")).status_code == 404
    assert (await bob.post(path, form={"password": "bob's password"})).status_code == 303
    assert (await bob.post(path, form={"password": "another one"})).status_code == 409
    form = {"email": "bob@x.test", "password": "bob's password"}
    assert (await bob.post("/sign-in", form=form)).status_code == 303


async def test_invitation_expires(ada: TenantClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time it is told to be invalid."""
    page = await (await ada.post("/invitations", form={"email": "bob@x.test"})).get_data(as_text=True)
    path = page.partition('href="http://acme.localhost')[2].partition('"')[0]
    monkeypatch.setattr("notes.INVITATION_SECONDS", -1)

    answer = await ada.get(path)

    assert answer.status_code == 404
    assert "not valid any more" in await answer.get_data(as_text=True)


async def test_operators_page_is_for_operators(tenants_app: Quart, tenants: QuartTenants) -> None:
    """Only the password opens it, and the plan that an operator chooses counts."""
    operator = ("operator", "for operators")
    tenants_app.config["OPERATOR_PASSWORD"] = operator[1]
    client = tenants_app.test_client()
    statuses = []
    for password in (None, "wrong", "for operators"):
        auth = {} if password is None else {"auth": ("operator", password)}
        statuses.append((await client.get("/operators", headers=APEX, **auth)).status_code)
    assert statuses == [401, 401, 200]

    assert (await client.post("/operators/acme", form={"plan": "large"}, headers=APEX)).status_code == 401
    await client.post("/operators/acme", form={"plan": "large"}, headers=APEX, auth=operator)
    await tenants.registry.refresh()
    assert tenants.registry.get_tenant(parse_slug("acme")).settings == {"plan": "large"}


async def test_plan_limits_the_notes(ada: TenantClient, tenants: QuartTenants) -> None:
    """A tenant whose plan is full is told so."""
    async with tenants.database.shared_connection() as connection:
        await connection.execute("UPDATE plans SET notes = 1 WHERE name = 'small'")

    assert await write(ada, "first") == 303
    assert await write(ada, "second") == 403


@pytest.fixture
def public_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of the domain itself, for links that are made outside of requests."""
    monkeypatch.setenv("QUART_TENANTS_PUBLIC_URL", "https://localhost")


async def test_digest_names_each_tenant_with_its_link(
    public_url: None, tenants_app: Quart, tenants: QuartTenants
) -> None:
    """The job runs outside of requests, and its links are whole addresses."""
    async with tenants_app.app_context():
        results = await for_each_tenant(write_digest)

    assert [result.value for result in results] == [
        "0 new at https://acme.localhost/",
        "0 new at https://globex.localhost/",
    ]
    assert "digest" in tenants.commands.commands


async def test_two_who_accept_one_invitation_at_once_are_one_user(
    ada: TenantClient, client_for: ClientMaker, first_tenant: Tenant
) -> None:
    """One joins, and the other is told to sign in."""
    page = await (await ada.post("/invitations", form={"email": "bob@x.test"})).get_data(as_text=True)
    path = page.partition('href="http://acme.localhost')[2].partition('"')[0]
    clients = [await client_for(first_tenant) for _ in range(2)]

    answers = await asyncio.gather(*(client.post(path, form={"password": "x"}) for client in clients))

    assert sorted(answer.status_code for answer in answers) == [303, 409]


async def test_writers_at_once_do_not_pass_the_limit_together(ada: TenantClient, tenants: QuartTenants) -> None:
    """The plan holds for all requests together."""
    async with tenants.database.shared_connection() as connection:
        await connection.execute("UPDATE plans SET notes = 2 WHERE name = 'small'")

    statuses = await asyncio.gather(*(write(ada, f"note {number}") for number in range(6)))

    assert sorted(statuses) == [303, 303, 403, 403, 403, 403]


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"body": 1}', b"null"])
async def test_json_that_is_no_note_is_refused(ada: TenantClient, body: bytes) -> None:
    """The program that sent it is told, and nothing is saved."""
    answer = await ada.post("/api/notes", data=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 400
    assert await (await ada.get("/api/notes")).get_json() == {"notes": []}


async def test_form_without_its_number_is_refused(ada: TenantClient) -> None:
    """It cannot be told from one that was sent before."""
    assert await write(ada, "a note", "no number") == 400


async def test_only_the_owner_uses_a_domain(ada: TenantClient) -> None:
    """A colleague who was invited is told whom to ask."""
    answer = await ada.post("/domains", form={"domain": "notes.acme.test"}, headers=BROWSER)

    assert answer.status_code == 403


async def test_text_that_is_no_domain_is_refused(ada: TenantClient) -> None:
    """The page says what is wrong."""
    answer = await ada.post("/domains", form={"domain": "not a domain"}, headers=BROWSER)

    assert answer.status_code == 400
    assert "cannot be a tenant" in await answer.get_data(as_text=True)


async def test_custom_domain_serves_the_tenant(tenants_app: Quart, tenants: QuartTenants, first_tenant: Tenant) -> None:
    """The pages of the tenant are at its own domain, too."""
    await add_domain(
        tenants.database, first_tenant.slug, parse_domain("notes.acme.test"), settings=tenants.settings, trusted=True
    )
    await tenants.registry.refresh()

    answer = await tenants_app.test_client().get("/sign-in", headers={"Host": "notes.acme.test"})

    assert answer.status_code == 200


async def test_nothing_leaks(ada: TenantClient, client_for: ClientMaker, second_tenant: Tenant) -> None:
    """No text of one tenant's is in an answer to another."""
    await write(ada, "ada's secret plan")
    for path in ("/", "/notes/1", "/api/notes", "/notes.csv", "/?q=secret"):
        await ada.get(path)

    assert await hunt_leaks(ada, await client_for(second_tenant)) == 33

"""Sign-ups at the domain itself: who gets a tenant, who does not, and how often."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

import pytest
from quart.wrappers import Response

from quart_tenants.admin import Database, drop_tenant, parse_slug, rename_tenant
from quart_tenants.app import create_app
from quart_tenants.settings import Settings
from quart_tenants.web.sessions.logins import LoginAttempt
from tests.support.databases import drop_for_good, execute
from tests.support.processes import SECRET_KEY
from tests.support.visitors import Visitor, read

pytestmark = pytest.mark.slow

FORM = {"name": "Müller & Söhne", "slug": "mueller", "uname": "ada", "passwd": "a password", "again": "a password"}
TAKEN = "This address is taken. Please choose another one."


@asynccontextmanager
async def serving(database_url: str, *, sign_up: bool = True, **settings: object) -> AsyncIterator[Visitor]:
    """Serve the reference app; yield a browser at the domain itself."""
    app = create_app(
        {
            "TENANTS_DATABASE_URL": database_url,
            "SECRET_KEY": SECRET_KEY,
            "TENANTS_SIGN_UP": sign_up,
            # Nothing here depends on how passwords are hashed.
            "TENANTS_PASSWORD_SCHEMES": "pbkdf2_sha256",
        }
        | settings
    )
    async with app.test_app():
        yield Visitor(app.test_client(), "localhost:5000")


@pytest.fixture
async def visitor(database_url: str) -> AsyncIterator[Visitor]:
    """A browser at the domain itself, where sign-ups are open and nobody has to wait."""
    async with serving(database_url, TENANTS_LOGIN_ATTEMPTS=1000) as visitor:
        yield visitor


async def sign_up(visitor: Visitor, **fields: str) -> Response:
    """Send the form with *fields* in place of its own."""
    return await visitor.post("/sign-up", **FORM | fields)


async def count_tenants(database: Database) -> int:
    """Return how many tenants the registry knows."""
    async with database.connection() as connection:
        return int(await connection.fetchval("SELECT count(*) FROM quart_tenants.tenants"))


async def test_stranger_makes_a_tenant_and_signs_in(visitor: Visitor) -> None:
    """The answer is the address, which is served at once, with the user and the name of the form; its data is empty."""
    made = await sign_up(visitor)
    there = Visitor(visitor.client, "mueller.localhost:5000")
    signed_in = await there.post("/sign-in", uname="ada", passwd="a password")
    page = await read(await there.get("/"))

    assert made.status_code == HTTPStatus.CREATED
    assert 'href="http://mueller.localhost:5000/sign-in"' in await read(made)
    assert signed_in.status_code == HTTPStatus.SEE_OTHER
    assert "Müller &amp; Söhne" in page
    assert "There are no rows yet." in page


async def test_sign_up_is_written_down(visitor: Visitor, caplog: pytest.LogCaptureFixture) -> None:
    """The audit has the tenant and the address of whoever made it, and neither the password nor the user."""
    with caplog.at_level("INFO", logger="quart_tenants.audit"):
        await visitor.client.post(
            "/sign-up", headers=visitor.headers, form=FORM, scope_base={"client": ("192.0.2.7", 1)}
        )

    assert "tenant_created tenant='mueller' schema='mueller' address='192.0.2.7'" in caplog.text
    assert FORM["passwd"] not in caplog.text
    assert FORM["uname"] not in caplog.text


@pytest.mark.parametrize("slug", ["MUELLER", " Mueller "])
async def test_case_of_an_address_makes_no_difference(visitor: Visitor, slug: str) -> None:
    """Host names have no case, so the customer gets the name in lower case."""
    assert "http://mueller.localhost:5000/" in await read(await sign_up(visitor, slug=slug))


@pytest.mark.parametrize(
    "slug",
    [
        *("www", "admin", "public", "pg_x", "quart_tenants", "müller", "MÜLLER", "xn--mller-kva", "a.b", "a b", "-a"),
        *("", "a" * 64, "\u212aiosk", "mueller\0", "<script>"),
    ],
)
async def test_name_that_cannot_be_an_address_is_refused(visitor: Visitor, database: Database, slug: str) -> None:
    """Reserved, with an umlaut, punycode, too long: 400 and a sentence that says what is possible."""
    before = await count_tenants(database)
    answer = await sign_up(visitor, slug=slug)
    page = await read(answer)

    assert answer.status_code == HTTPStatus.BAD_REQUEST
    assert "Use 1 to 63 of the letters a to z" in page
    assert 'aria-describedby="error slug-hint" aria-invalid="true" autofocus' in page
    assert "Müller &amp; Söhne" in page
    assert "<script" not in page
    assert await count_tenants(database) == before


async def test_name_that_is_taken_is_refused(
    visitor: Visitor, database: Database, database_url: str, settings: Settings
) -> None:
    """409 for a tenant's name, a former one, one in the trash and a schema's; the page does not tell which it is."""
    await drop_tenant(database, parse_slug("globex"))
    await rename_tenant(database, parse_slug("company2"), parse_slug("second"), settings=settings)
    await execute(database_url, "CREATE SCHEMA reports")

    answers = {slug: await sign_up(visitor, slug=slug) for slug in ("acme", "globex", "company2", "reports")}
    pages = {slug: await read(answer) for slug, answer in answers.items()}

    assert {answer.status_code for answer in answers.values()} == {409}
    assert all(TAKEN in page for page in pages.values())
    assert 'href="http://acme.localhost:5000/sign-in"' in pages["acme"]
    assert "second" not in pages["company2"]
    assert "reports.localhost" not in pages["reports"]


async def test_resting_name_is_told_to_come_back(visitor: Visitor, database: Database) -> None:
    """A name that was in use until a moment ago is free shortly."""
    await drop_for_good(database, parse_slug("acme"))
    async with database.connection() as connection:
        await connection.execute("UPDATE quart_tenants.resting_names SET free_at = now() + interval '1 minute'")
    answer = await sign_up(visitor, slug="acme")

    assert answer.status_code == HTTPStatus.CONFLICT
    assert "in use until a moment ago" in await read(answer)


async def test_two_sign_ups_at_once_make_one_tenant(visitor: Visitor, database: Database) -> None:
    """One of them gets the name; the other one is told that it is taken, and can try another name at once."""
    before = await count_tenants(database)
    other = Visitor(visitor.client, "localhost:5000")
    answers = await asyncio.gather(sign_up(visitor), sign_up(other, uname="eve", passwd="other", again="other"))

    assert sorted(answer.status_code for answer in answers) == [201, 409]
    assert await count_tenants(database) == before + 1
    there = Visitor(visitor.client, "mueller.localhost:5000")
    statuses = {
        (await there.post("/sign-in", uname=user, passwd=password)).status_code
        for user, password in (("ada", "a password"), ("eve", "other"))
    }
    assert statuses == {303, 401}


async def test_form_that_is_sent_twice_leads_to_the_tenant(visitor: Visitor, database: Database) -> None:
    """The second answer, which is the one that is seen, says where to sign in; there is one tenant."""
    before = await count_tenants(database)
    first, second = await sign_up(visitor), await sign_up(visitor)
    page = await read(second)

    assert (first.status_code, second.status_code) == (201, 409)
    assert TAKEN in page
    assert 'href="http://mueller.localhost:5000/sign-in"' in page
    assert await count_tenants(database) == before + 1


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"again": "another"}, ["passwd", "again"]),
        ({"passwd": "x" * 4097, "again": "x" * 4097}, ["passwd"]),
        ({"uname": "ada\n"}, ["uname"]),
        ({"name": "x" * 201}, ["name"]),
        ({"slug": "acme"}, ["slug"]),
    ],
)
async def test_error_names_its_fields(visitor: Visitor, fields: dict[str, str], wrong: list[str]) -> None:
    """The fields that an error is about are described by it, and the first of them has the focus."""
    page = await read(await sign_up(visitor, **fields))
    inputs = re.findall(r'<input id="(\w+)"([^>]*)>', page)

    assert [name for name, attributes in inputs if 'aria-invalid="true"' in attributes] == wrong
    assert [name for name, attributes in inputs if 'aria-describedby="error' in attributes] == wrong
    assert [name for name, attributes in inputs if "autofocus" in attributes] == wrong[:1]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"again": "another"}, "The two new passwords differ."),
        ({"passwd": "", "again": ""}, "The new password is empty."),
        ({"passwd": "x" * 4097, "again": "x" * 4097}, "A password has at most 4096 characters."),
        ({"uname": ""}, "use 1 to 254 printable characters."),
        ({"uname": "ada\n"}, "use 1 to 254 printable characters."),
        ({"name": "x" * 201}, "Use 1 to 200 printable characters."),
    ],
)
async def test_refused_sign_up_leaves_nothing(
    visitor: Visitor, database: Database, fields: dict[str, str], text: str
) -> None:
    """400 and what to change; no tenant is made, and the name is free."""
    before = await count_tenants(database)
    answer = await sign_up(visitor, **fields)
    page = await read(answer)

    assert answer.status_code == HTTPStatus.BAD_REQUEST
    assert text in page
    assert "a password" not in page
    assert await count_tenants(database) == before
    assert (await sign_up(visitor)).status_code == HTTPStatus.CREATED


async def test_sign_up_is_off_unless_it_is_on(database_url: str) -> None:
    """Without `TENANTS_SIGN_UP` there is no form, no link to it and no tenant."""
    async with serving(database_url, sign_up=False) as visitor:
        statuses = [(await visitor.get("/sign-up")).status_code, (await sign_up(visitor)).status_code]
        index = await read(await visitor.get("/"))
    async with serving(database_url) as visitor:
        open_index = await read(await visitor.get("/"))

    assert statuses == [404, 404]
    assert "/sign-up" not in index
    assert 'href="/sign-up"' in open_index


async def make_many(visitor: Visitor) -> list[int]:
    """Sign up six times at once under names of their own; return the statuses, sorted."""
    answers = await asyncio.gather(*(sign_up(visitor, slug=f"site{number}") for number in range(6)))
    return sorted(answer.status_code for answer in answers)


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "without"])
async def test_only_the_count_keeps_an_address_from_making_many_tenants(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, counted: bool
) -> None:
    """After two (which are allowed here) an address has to wait, whatever the sign-ups came to; others need not."""
    if not counted:

        async def forget(attempt: LoginAttempt) -> None:
            attempt.succeeded = True

        monkeypatch.setattr(LoginAttempt, "count", forget)
    before = await count_tenants(database)
    async with serving(database_url, TENANTS_LOGIN_ATTEMPTS=2, TENANTS_LOGIN_MAX_DELAY=3600) as visitor:
        first = [(await sign_up(visitor, slug=slug)).status_code for slug in ("acme", "site")]
        await execute(database_url, "UPDATE quart_tenants.failed_logins SET wait_until = now() + interval '1 minute'")
        later = await sign_up(visitor, slug="later")
        program = await visitor.client.post("/sign-up", headers={"Host": "localhost"}, json=FORM | {"slug": "later"})
        burst = await make_many(visitor)
        elsewhere = await visitor.client.post(
            "/sign-up",
            headers=visitor.headers,
            form=FORM | {"slug": "elsewhere"},
            scope_base={"client": ("192.0.2.7", 1)},
        )
        async with database.connection() as connection:
            await connection.execute("DELETE FROM quart_tenants.failed_logins")
        again = await sign_up(visitor, slug="again")

    assert first == [409, 201]
    assert elsewhere.status_code == again.status_code == HTTPStatus.CREATED
    assert await count_tenants(database) == before + 3 + (0 if counted else 7)
    assert burst == [429 if counted else 201] * 6
    if counted:
        assert later.status_code == HTTPStatus.TOO_MANY_REQUESTS
        assert f"Please wait {later.headers['Retry-After']} seconds" in await read(later)
        document = await program.get_json()
        assert (document["status"], document["code"]) == (429, "too_many_logins")
        assert document["detail"].startswith("too many sign-ups came from your address; the next one may come in ")

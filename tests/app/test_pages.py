"""The pages for people: what a browser is shown at the status that a program gets, and the forms."""

from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any

import pytest
from quart import Quart, render_template
from quart.wrappers import Response

from quart_tenants.admin import Database, drop_tenant, parse_slug, suspend_tenant
from quart_tenants.app import create_app
from quart_tenants.errors import TenantError
from quart_tenants.web.state import get_state
from tests.support.databases import execute
from tests.support.processes import SECRET_KEY
from tests.support.visitors import BROWSER, Visitor, read

pytestmark = pytest.mark.slow

# Nothing here depends on how passwords are hashed.
CONFIG = {"SECRET_KEY": SECRET_KEY, "TENANTS_PASSWORD_SCHEMES": "pbkdf2_sha256"}
PROBLEM = "application/problem+json"
USER = {"uname": "user_1", "passwd": "foo"}


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[Quart]:
    """The reference app, serving."""
    app = create_app(CONFIG | {"TENANTS_DATABASE_URL": database_url})
    async with app.test_app():
        yield app


@pytest.fixture
def visit(app: Quart) -> Callable[..., Visitor]:
    """Open a browser of its own at a host."""

    def open_browser(host: str = "company1.localhost:5000", accept: str = BROWSER) -> Visitor:
        return Visitor(app.test_client(), host, accept)

    return open_browser


# Who gets a page


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("text/html, */*;q=0.1", True),
        ("text/*", True),
        ("application/json;q=0.1, application/problem+json;q=0.1, */*;q=0.5", True),
        ("application/json;q=0.5, text/html;q=0.6", True),
        ("TEXT/HTML", True),
        ("*/*", False),
        ("", False),
        ("application/json", False),
        ("text/html;q=0, */*", False),
        ("text/html;q=0.2, */*;q=0.8", False),
        ("text/html, application/json", False),
        ("text/html;q=0.5, application/json;q=0.6", False),
        ("text/html;q=0.9, application/*", False),
        ("image/png", False),
        ("text/html;q=x", False),
    ],
)
async def test_page_is_for_who_likes_html_better_than_json(
    visit: Callable[..., Visitor], accept: str, is_page: bool
) -> None:
    """The qualities of RFC 9110 decide, the most specific one of each type; a tie is a program's."""
    answer = await visit(accept=accept).get("/data")

    assert (answer.status_code, answer.mimetype) == (401, "text/html" if is_page else PROBLEM)


@pytest.mark.parametrize(
    ("host", "method", "path", "status"),
    [
        ("company1.localhost", "GET", "/data", 401),
        ("company1.localhost", "POST", "/data", 405),
        ("company1.localhost", "GET", "/nothing", 404),
        ("company1.localhost", "GET", "/openapi.json", 404),
        ("company1.localhost", "POST", "/login", 401),
        ("company1.localhost", "POST", "/sign-in", 401),
        ("company1.localhost", "GET", "/change-password", 401),
        ("company1.localhost", "POST", "/change-password", 401),
        ("company1.localhost", "GET", "/sign-out", 405),
        ("localhost", "GET", "/sign-up", 404),
        ("localhost", "POST", "/openapi.json", 405),
        ("localhost", "POST", "/readyz", 405),
        ("nobody.localhost", "GET", "/", 400),
        ("nobody.localhost", "GET", "/static/style.css", 400),
        ("www.evil.test", "GET", "/", 404),
        ("127.0.0.1:5000", "GET", "/", 404),
        ("[::1]", "POST", "/login", 404),
        ("a..b", "GET", "/", 404),
    ],
)
async def test_accept_changes_the_page_and_never_the_status(
    visit: Callable[..., Visitor], host: str, method: str, path: str, status: int
) -> None:
    """Everywhere a browser gets a page and a program a problem document, and caches are told that they differ."""
    answers = []
    for accept, kind in ((BROWSER, "text/html"), ("*/*", PROBLEM)):
        visitor = visit(host, accept)
        answer = await (visitor.get(path) if method == "GET" else visitor.post(path))
        assert (answer.status_code, answer.mimetype) == (status, kind)
        assert "Accept" in answer.headers["Vary"]
        answers.append(answer)

    assert answers[0].headers.get("Allow") == answers[1].headers.get("Allow")


async def test_probe_that_fails_has_a_page_for_a_browser(database_url: str, visit: Callable[..., Visitor]) -> None:
    """Whoever looks by hand reads it; a load balancer gets what it always got, at the same status."""
    await execute(database_url, "DROP SCHEMA quart_tenants CASCADE")

    for host in ("127.0.0.1", "company1.localhost"):
        page, problem = await visit(host).get("/readyz"), await visit(host, "*/*").get("/readyz")
        assert (page.status_code, page.mimetype) == (503, "text/html")
        assert (problem.status_code, (await problem.get_json(force=True))["code"]) == (503, "registry_not_ready")
        assert page.headers["Retry-After"] == problem.headers["Retry-After"]


# What a customer reads


@pytest.mark.parametrize("host", ["127.0.0.1:5000", "[::1]:5000", "www.evil.test", "a.company1.localhost", ""])
async def test_unknown_host_is_told_why(visit: Callable[..., Visitor], host: str) -> None:
    """The page says that the host is wrong, whatever the path, and names neither the domain nor a tenant."""
    first, second = [await visit(host).get(path) for path in ("/", "/data?x=1")]
    page = await read(first)

    assert first.status_code == second.status_code == HTTPStatus.NOT_FOUND
    assert page == await read(second)
    assert "Sites are found here by their names" in page
    assert "company1" not in page
    assert "localhost" not in page


async def test_unknown_page_is_not_told_that(visit: Callable[..., Visitor]) -> None:
    """Negative control: at a host of ours it is the path that is wrong."""
    page = await read(await visit().get("/nothing"))

    assert "There is no such page" in page
    assert "Sites are found here" not in page


async def test_tenants_that_are_not_served_look_alike(database: Database, database_url: str) -> None:
    """Suspended, in the trash, unknown: nobody can tell, and whether a customer has paid is nobody's business."""
    await suspend_tenant(database, parse_slug("company1"))
    await drop_tenant(database, parse_slug("company2"))
    await execute(database_url, "DELETE FROM quart_tenants.applied_migrations WHERE schema_name = 'acme'")
    app = create_app(CONFIG | {"TENANTS_DATABASE_URL": database_url})
    async with app.test_app():

        async def visit(slug: str) -> Response:
            return await Visitor(app.test_client(), f"{slug}.localhost").get("/")

        answers = [await visit(slug) for slug in ("company1", "company2", "nobody")]
        behind, served = await visit("acme"), await visit("globex")

    assert {answer.status_code for answer in answers} == {400}
    (page,) = {await read(answer) for answer in answers}
    assert "There is no site here" in page
    assert (behind.status_code, behind.headers["Retry-After"]) == (503, "2")
    assert "This site is being updated" in await read(behind)
    assert served.status_code == HTTPStatus.SEE_OTHER


async def test_session_of_another_tenant_is_told_where_to_sign_in(visit: Callable[..., Visitor]) -> None:
    """400 before any SQL, with the way to the form, where the right password replaces that session."""
    visitor = visit()
    await visitor.post("/sign-in", **USER)
    elsewhere = Visitor(visitor.client, "company2.localhost:5000")

    refused = await elsewhere.get("/")
    signed_in = await elsewhere.post("/sign-in", uname="user_2", passwd="foo")

    assert refused.status_code == HTTPStatus.BAD_REQUEST
    page = await read(refused)
    assert 'href="/sign-in"' in page
    assert "company 1 data" not in page
    assert signed_in.status_code == HTTPStatus.SEE_OTHER
    assert "company 2 data" in await read(await elsewhere.get("/"))


def list_errors(root: type[TenantError] = TenantError) -> list[type[TenantError]]:
    """Return all classes of errors with an answer of their own."""
    below = [error for child in root.__subclasses__() for error in (child, *list_errors(child))]
    return sorted({error for error in below if error.status != HTTPStatus.INTERNAL_SERVER_ERROR}, key=lambda e: e.code)


OPERATORS_WORDS = ("tenant", "schema", "database", "registry", "pool", "role", "slug", "connection", "command")
# No page of the reference app leads there: the operators' commands alone do, or an app that has such pages.
OF_OTHER_APPS = {
    *("invalid_settings", "invalid_domain", "invalid_path", "unknown_domain", "domain_taken", "domain_not_verified"),
    *("tenant_not_in_trash", "dependents", "unknown_schema", "unknown_user"),
}


async def explain(app: Quart, error: type[TenantError], template: str) -> str:
    """Return the page about *error*."""
    text = (error.__doc__ or "").partition("\n")[0]
    async with app.test_request_context("/", headers={"Host": "company1.localhost"}):
        facts: dict[str, Any] = {"status": error.status, "title": "Sorry", "text": text, "code": error.code}
        return await render_template(template, **facts, retry_after=4)


@pytest.mark.parametrize("error", [error for error in list_errors() if error.code not in OF_OTHER_APPS])
async def test_customer_reads_no_operators_words(app: Quart, error: type[TenantError]) -> None:
    """Every error that can be met here is told in words of everyday life."""
    page = (await explain(app, error, "tenant_error.html")).partition("</style>")[2].lower()

    assert [word for word in OPERATORS_WORDS if word in page] == []


async def test_operators_words_are_found(app: Quart) -> None:
    """Negative control: an error without words of its own is told by its own text."""
    (error,) = [error for error in list_errors() if error.code == "unknown_domain"]

    assert "tenant" in (await explain(app, error, "tenant_error.html")).partition("</style>")[2]


# Forms


async def test_form_leads_to_the_data_and_back(visit: Callable[..., Visitor]) -> None:
    """Sign in, see the data of this tenant alone, sign out; each form ends in a redirect, so a reload is harmless."""
    visitor = visit()
    sent_away = await visitor.get("/")
    signed_in = await visitor.post("/sign-in", **USER)
    page = await read(await visitor.get("/"))
    signed_out = await visitor.post("/sign-out")

    assert (sent_away.status_code, sent_away.headers["Location"]) == (303, "/sign-in")
    assert (signed_in.status_code, signed_in.headers["Location"]) == (303, "/")
    assert "company 1 data" in page
    assert "company 2 data" not in page
    assert (signed_out.status_code, signed_out.headers["Location"]) == (303, "/sign-in")
    assert (await visitor.get("/")).status_code == HTTPStatus.SEE_OTHER


async def test_refused_form_comes_back(visit: Callable[..., Visitor]) -> None:
    """It keeps what was typed, escaped and without the password, and connects the fields with the error."""
    answer = await visit().post("/sign-in", uname='"><script>', passwd="secret")
    page = await read(answer)

    assert answer.status_code == HTTPStatus.UNAUTHORIZED
    assert 'value="&#34;&gt;&lt;script&gt;"' in page
    assert "<script" not in page
    assert "secret" not in page
    assert page.count('aria-describedby="error" aria-invalid="true"') == 2
    assert '<p id="error"' in page


@pytest.mark.parametrize("way", ["https://evil.test/", "//evil.test", "/\\evil.test"])
async def test_no_link_leads_to_another_site(visit: Callable[..., Visitor], way: str) -> None:
    """Whatever the address of the form says, signing in leads to the data."""
    visitor = visit()

    answer = await visitor.client.post(
        "/sign-in", query_string={"next": way, "url": way}, headers=visitor.headers, form=USER
    )

    assert answer.headers["Location"] == "/"


async def test_new_password_ends_the_other_sessions(app: Quart, visit: Callable[..., Visitor]) -> None:
    """The visitor stays signed in and is told so once; everybody else with that user is not, and needs the new one."""
    here, there = visit(), visit()
    for visitor in (here, there):
        await visitor.post("/sign-in", **USER)

    differ = await here.post("/change-password", passwd="foo", new_passwd="bar", again="baz")
    wrong = await here.post("/change-password", passwd="fo", new_passwd="bar", again="bar")
    changed = await here.post("/change-password", passwd="foo", new_passwd="bar", again="bar")

    assert (differ.status_code, wrong.status_code, changed.status_code) == (400, 401, 303)
    assert "The two new passwords differ." in await read(differ)
    assert "The present password is wrong." in await read(wrong)
    # What each worker does about once a second.
    async with app.app_context():
        await get_state().registry.refresh()
    assert (await there.get("/")).status_code == HTTPStatus.SEE_OTHER
    assert "Your password was changed." in await read(await here.get("/"))
    assert "Your password was changed." not in await read(await here.get("/"))
    assert (await there.post("/sign-in", **USER)).status_code == HTTPStatus.UNAUTHORIZED
    assert (await there.post("/sign-in", uname="user_1", passwd="bar")).status_code == HTTPStatus.SEE_OTHER


async def test_form_of_a_program_gets_problem_documents(visit: Callable[..., Visitor]) -> None:
    """Who does not ask for HTML is told what was wrong as everywhere else."""
    answer = await visit(accept="*/*").post("/sign-in", uname="user_1", passwd="bar")

    assert (answer.status_code, (await answer.get_json(force=True))["code"]) == (401, "invalid_credentials")


async def test_too_many_attempts_are_told_how_long(database_url: str) -> None:
    """429 at the form itself, with the seconds to wait; the right password has to wait, too."""
    app = create_app(CONFIG | {"TENANTS_DATABASE_URL": database_url, "TENANTS_LOGIN_ATTEMPTS": 1})
    async with app.test_app():
        visitor = Visitor(app.test_client(), "company1.localhost")
        await visitor.post("/sign-in", uname="user_1", passwd="wrong")
        await execute(database_url, "UPDATE quart_tenants.failed_logins SET wait_until = now() + interval '1 minute'")
        answer = await visitor.post("/sign-in", **USER)

    assert answer.status_code == HTTPStatus.TOO_MANY_REQUESTS
    page = await read(answer)
    assert f"Please wait {answer.headers['Retry-After']} seconds" in page
    assert 'value="user_1"' in page


async def test_form_that_cannot_be_served_now_comes_back(database_url: str) -> None:
    """503 at the form, which can be sent once more; the page names no part of the server."""
    app = create_app(
        {
            "TENANTS_DATABASE_URL": database_url,
            "SECRET_KEY": SECRET_KEY,
            "TENANTS_POOL_MAX_SIZE": 1,
            "TENANTS_ACQUIRE_TIMEOUT": 0.1,
        }
    )
    async with app.test_app():
        visitor = Visitor(app.test_client(), "company1.localhost")
        async with app.app_context(), get_state().database.connection() as connection:
            await connection.execute("SELECT pg_catalog.txid_current()")
            refused = await visitor.post("/sign-in", **USER)
        served = await visitor.post("/sign-in", **USER)

    page = await read(refused)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
    assert "We cannot do this at the moment. Please try again shortly." in page
    assert 'value="user_1"' in page
    assert served.status_code == HTTPStatus.SEE_OTHER


FORMS = [
    ("company1.localhost", "/sign-in"),
    ("company1.localhost", "/sign-out"),
    ("company1.localhost", "/change-password"),
    ("localhost", "/sign-up"),
]


@pytest.mark.parametrize(("host", "path"), FORMS)
@pytest.mark.parametrize(
    "headers", [{"Origin": "http://company2.localhost"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "null"}]
)
async def test_form_of_another_site_is_refused(
    visit: Callable[..., Visitor], host: str, path: str, headers: dict[str, str]
) -> None:
    """A sibling's page, and a page without an origin, can send none of the forms; the page says what to do instead."""
    answer = await visit(host).post(path, headers, **USER)

    assert answer.status_code == HTTPStatus.FORBIDDEN
    assert "Set-Cookie" not in answer.headers
    assert "Please open this site, and do it here." in await read(answer)


@pytest.mark.parametrize(("host", "path"), FORMS)
async def test_form_of_the_site_itself_is_not_refused(visit: Callable[..., Visitor], host: str, path: str) -> None:
    """Negative control: the same form from a page of the same origin."""
    answer = await visit(host).post(path, {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}, **USER)

    assert answer.status_code != HTTPStatus.FORBIDDEN


async def test_data_comes_in_pages(database_url: str, visit: Callable[..., Visitor]) -> None:
    """Fifty rows, and a link to the next ones where there are more."""
    await execute(
        database_url,
        "INSERT INTO company1.company_data (description) SELECT '<b>row' || n FROM generate_series(1, 50) AS n",
    )
    visitor = visit()
    await visitor.post("/sign-in", **USER)
    first, second = await read(await visitor.get("/")), await read(await visitor.get("/?after=50"))
    beyond, wrong = await visitor.get("/?after=51"), await visitor.get("/?after=x")

    assert first.count("<tr>") == 51
    assert 'href="/?after=50"' in first
    assert "&lt;b&gt;row1<" in first
    assert second.count("<tr>") == 2
    assert "Next rows" not in second
    assert "There are no rows after this." in await read(beyond)
    assert wrong.status_code == HTTPStatus.BAD_REQUEST

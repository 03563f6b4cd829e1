"""Errors for people and for programs: who gets a page, and what is on it."""

import operator
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from quart import Quart, Response, ResponseReturnValue, abort, render_template_string, stream_with_context

from quart_tenants import (
    QuartTenants,
    answer_tenant_error,
    current_tenant,
    find_tenant,
    get_next_path,
    login_required,
    start_session,
    tenant_connection,
)
from quart_tenants.errors import (
    DomainNotVerifiedError,
    DomainTakenError,
    FormerSlugError,
    NoTenantError,
    SchemaExistsError,
    TenantError,
    TenantExistsError,
    TenantInTrashError,
    UnknownTenantError,
)
from quart_tenants.web.answers.problems import answer_all_errors, answer_http_errors
from tests.support.databases import REFERENCE_FILES

pytestmark = pytest.mark.slow

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
JSON = "application/json"
PAGE = "{{ status }} {{ title }}: {{ text }}{% if current_tenant %} at {{ current_tenant.name }}{% endif %}"


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """The folder of the app's templates, still empty."""
    folder = tmp_path / "templates"
    folder.mkdir()
    return folder


@pytest.fixture
async def app(database_url: str, templates: Path) -> AsyncIterator[Quart]:
    """An app for people, serving."""
    app = Quart(__name__, host_matching=True, static_folder=None, template_folder=str(templates))
    app.secret_key = "a key of a decent length"
    app.config.update(TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url)
    tenants = QuartTenants(app)

    @app.get("/", host=tenants.host)
    async def index() -> ResponseReturnValue:
        return {"tenant": current_tenant.slug}

    @app.get("/trash", host=tenants.host)
    async def trash() -> ResponseReturnValue:
        raise TenantInTrashError("cust2")

    @app.get("/bug", host=tenants.host)
    async def bug() -> ResponseReturnValue:
        async with tenant_connection("globex"):
            return {}

    @app.get("/shared", host=tenants.any_host)
    async def shared() -> ResponseReturnValue:
        found = find_tenant()
        told = await render_template_string(
            "{% if current_tenant %}{{ current_tenant.slug }}{% else %}nobody{% endif %}"
        )
        return {"template": told, "found": found and found.slug, "true": bool(current_tenant)}

    @app.get("/members/<name>", host=tenants.host)
    @login_required
    async def members(name: str) -> ResponseReturnValue:
        return {"name": name}

    @app.post("/members/<name>", host=tenants.host)
    @login_required
    async def add(name: str) -> ResponseReturnValue:
        return {"name": name}

    @app.get("/sign-in", host=tenants.host)
    async def sign_in() -> ResponseReturnValue:
        return {"next": get_next_path()}

    @app.post("/sign-in", host=tenants.host)
    async def check() -> ResponseReturnValue:
        await start_session("ada")
        return {}

    tenants.sign_in_endpoint = "sign_in"
    async with app.test_app():
        yield app


async def get(
    app: Quart, path: str, *, slug: str = "acme", accept: str | None = BROWSER
) -> tuple[int, str | None, str]:
    """Return status, media type and body of an answer."""
    headers = {"Host": f"{slug}.localhost"} | ({} if accept is None else {"Accept": accept})
    answer = await app.test_client().get(path, headers=headers)
    return answer.status_code, answer.mimetype, await answer.get_data(as_text=True)


# Pages


async def test_browser_gets_a_page(app: Quart) -> None:
    """Without a template of the app's a plain page says in words what is wrong, with no script and no style inside."""
    status, kind, page = await get(app, "/", slug="nobody")

    assert (status, kind) == (400, "text/html")
    assert "<p>no tenant answers at &#x27;nobody&#x27;</p>" in page
    assert "<script" not in page
    assert "style" not in page


@pytest.mark.parametrize(
    "accept", [None, "*/*", JSON, "application/problem+json", f"{JSON}, text/html;q=0.5", "image/*"]
)
async def test_program_gets_a_problem_document(app: Quart, accept: str | None) -> None:
    """Whoever does not ask for HTML above all is a program, as curl and fetch() are."""
    status, kind, _ = await get(app, "/", slug="nobody", accept=accept)

    assert (status, kind) == (400, "application/problem+json")


async def test_template_of_the_app_is_used(app: Quart, templates: Path) -> None:
    """It gets the status, the title and the text, and may use what is shared by all pages."""
    (templates / "tenant_error.html").write_text(PAGE)

    assert await get(app, "/trash") == (409, "text/html", "409 Conflict: This name is taken. at Acme")
    assert (await get(app, "/", slug="nobody"))[2] == "400 Bad Request: no tenant answers at &#39;nobody&#39;"


@pytest.mark.parametrize(
    "text", ["{{ 1 / 0 }}", "{% if %}", "{% include 'nothing.html' %}", "{{ current_tenant.slug }}"]
)
async def test_template_that_raises_gives_way_to_the_plain_page(
    app: Quart, templates: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The visitor reads what went wrong first; the log has both."""
    (templates / "tenant_error.html").write_text(text)

    status, kind, page = await get(app, "/", slug="nobody")

    assert (status, kind) == (400, "text/html")
    assert "no tenant answers" in page
    assert "the template tenant_error.html cannot be rendered" in caplog.text


async def test_form_shows_itself_again(app: Quart, templates: Path) -> None:
    """A view names its own template and what it needs; the page for errors shows a bug, and a program gets JSON."""
    (templates / "tenant_error.html").write_text(PAGE)
    (templates / "form.html").write_text("{{ status }} {{ code }}: {{ text }} {{ typed }}")

    async def show(error: TenantError, accept: str) -> tuple[int, str | None, str]:
        async with app.test_request_context("/", headers={"Host": "acme.localhost", "Accept": accept}):
            answer = await answer_tenant_error(error, "form.html", typed="<b>")
        return answer.status_code, answer.mimetype, await answer.get_data(as_text=True)

    taken = TenantExistsError("acme", "secret_schema")
    assert await show(taken, BROWSER) == (409, "text/html", "409 tenant_exists: This name is taken. &lt;b&gt;")
    assert (await show(taken, JSON))[:2] == (409, "application/problem+json")
    assert (await show(NoTenantError("a bug"), BROWSER))[2].startswith(
        "500 Internal Server Error: Something went wrong"
    )


async def test_quarts_own_errors_look_like_ours(app: Quart, templates: Path) -> None:
    """With `answer_http_errors` a browser reads the words of `abort` in the app's template, and a program in JSON."""
    (templates / "tenant_error.html").write_text(PAGE)

    @app.get("/full", host=QuartTenants.host)
    async def full() -> ResponseReturnValue:
        abort(403, "Your plan is full.")

    before = await app.test_client().get("/full", headers={"Host": "acme.localhost"})
    assert before.mimetype == "text/html"
    answer_http_errors(app)

    assert await get(app, "/full") == (403, "text/html", "403 Forbidden: Your plan is full. at Acme")
    assert (await get(app, "/nothing"))[0] == 404
    document = await app.test_client().get("/full", headers={"Host": "acme.localhost"})
    assert (document.status_code, document.mimetype) == (403, "application/problem+json")
    assert (await document.get_json())["detail"] == "Your plan is full."


def test_object_without_an_app_says_what_to_call_first() -> None:
    """What changes the app needs one."""
    with pytest.raises(RuntimeError, match=r"call init_app\(app\) first"):
        QuartTenants().answer_http_errors()
    with pytest.raises(RuntimeError, match=r"call init_app\(app\) first"):
        QuartTenants().each_tenant_command("digest")


async def test_foreign_host_has_a_page_of_its_own(app: Quart, templates: Path) -> None:
    """With `answer_all_errors` a browser reads that it is the host; the problem document is that of an unknown path."""
    (templates / "tenant_error.html").write_text("{{ code }}: {{ text }}")
    answer_all_errors(app)
    client = app.test_client()
    foreign, unknown = {"Host": "192.0.2.1:5000"}, {"Host": "acme.localhost"}

    page = await client.get("/nothing", headers=foreign | {"Accept": BROWSER})
    documents = [await client.get("/nothing", headers=headers) for headers in (foreign, unknown)]

    assert (page.status_code, await page.get_data(as_text=True)) == (
        404,
        "unknown_host: nothing is served at &#39;192.0.2.1:5000&#39;",
    )
    assert await documents[0].get_data() == await documents[1].get_data()


@pytest.mark.parametrize("accept", [BROWSER, JSON])
async def test_caches_are_told_that_errors_differ(app: Quart, accept: str) -> None:
    """Otherwise a cache would show one visitor's page to a program."""
    answer = await app.test_client().get("/", headers={"Host": "nobody.localhost", "Accept": accept})

    assert answer.headers["Vary"] == "Accept"


async def test_bug_shows_a_page_with_its_number(app: Quart, caplog: pytest.LogCaptureFixture) -> None:
    """An app that asks for another tenant has a bug: nothing of it is told, and the log has it under that number."""
    status, kind, page = await get(app, "/bug")

    assert (status, kind) == (500, "text/html")
    assert "globex" not in page
    number = page.partition("<code>")[2].partition("</code>")[0]
    assert number
    assert f"request {number} failed" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        TenantInTrashError("cust2"),
        SchemaExistsError("shared"),
        TenantExistsError("acme", "secret_schema"),
        FormerSlugError("acme", "zenith", "2026-12-24"),
        DomainTakenError("shop.example"),
    ],
)
def test_visitor_reads_no_operators_words(error: TenantError) -> None:
    """Names of commands, schemas and other tenants are for operators, who read the message."""
    assert error.visitor_text in ("This name is taken.", "This domain is taken.")
    assert error.visitor_text != str(error)


def test_visitor_reads_what_they_sent_and_what_they_can_do() -> None:
    """Some messages are written for visitors; the DNS record to make is told without the command."""
    assert UnknownTenantError("nobody").visitor_text == "no tenant answers at 'nobody'"
    assert UnknownTenantError("nobody").status == 400
    told = DomainNotVerifiedError("shop.example", "_tenants.shop.example", "abc").visitor_text
    assert "_tenants.shop.example" in told
    assert "command" not in told


async def test_handler_of_the_app_calls_ours(app: Quart) -> None:
    """An app changes some answers, and leaves the others as they are."""

    @app.errorhandler(TenantInTrashError)
    async def answer(error: TenantInTrashError) -> ResponseReturnValue:
        problem = await answer_tenant_error(error)
        problem.headers["X-Shop"] = "closed"
        return problem

    answered = await app.test_client().get("/trash", headers={"Host": "acme.localhost"})

    assert (answered.status_code, answered.headers["X-Shop"]) == (409, "closed")
    assert (await answered.get_json())["detail"] == "This name is taken."


# Who is here


@pytest.mark.parametrize(("slug", "found"), [("acme", "acme"), ("nobody", None)])
async def test_current_tenant_is_false_where_there_is_none(app: Quart, slug: str, found: str | None) -> None:
    """A page of all hosts asks for it, also at an address that no tenant has."""
    answer = await app.test_client().get("/shared", headers={"Host": f"{slug}.localhost"})

    told = {"template": found or "nobody", "found": found, "true": found is not None}
    assert await answer.get_json() == told


async def test_current_tenant_is_false_outside_of_requests(app: Quart) -> None:
    """So it is in a job, with an app context and without."""
    assert operator.not_(current_tenant)
    assert find_tenant() is None
    async with app.app_context():
        assert operator.not_(current_tenant)
        assert find_tenant() is None


async def test_stream_without_its_context_says_what_to_wrap(app: Quart) -> None:
    """A generator runs after the request has ended; with `stream_with_context` it has the tenant."""

    async def generate() -> AsyncIterator[str]:
        try:
            async with tenant_connection() as connection:
                yield await connection.fetchval("SELECT current_schema()")
        except NoTenantError as error:
            yield str(error)

    @app.get("/bare", host="<tenant_host:tenant>")
    async def bare() -> ResponseReturnValue:
        return Response(generate(), content_type="text/plain")

    @app.get("/wrapped", host="<tenant_host:tenant>")
    async def wrapped() -> ResponseReturnValue:
        return Response(stream_with_context(generate)(), content_type="text/plain")

    assert "use Quart's stream_with_context()" in (await get(app, "/bare"))[2]
    assert (await get(app, "/wrapped"))[2] == "acme"


# Signing in


async def test_browser_is_sent_to_the_sign_in_page(app: Quart) -> None:
    """After a GET the page knows where to go back to, with the query; after a POST it does not."""
    client = app.test_client()
    headers = {"Host": "acme.localhost", "Accept": BROWSER}

    read = await client.get("/members/a%20b?page=2", headers=headers)
    sent = await client.post("/members/x", headers=headers)

    assert (read.status_code, read.headers["Location"]) == (303, "/sign-in?next=/members/a%2520b?page%3D2")
    assert (sent.status_code, sent.headers["Location"]) == (303, "/sign-in")


async def test_view_without_async_may_need_a_login(app: Quart) -> None:
    """Quart runs such a view in a thread."""

    @app.get("/slow", host="<tenant_host:tenant>")
    @login_required  # type: ignore[arg-type]
    def slow() -> ResponseReturnValue:
        return {"slow": True}

    client = app.test_client()
    await client.post("/sign-in", headers={"Host": "acme.localhost"})

    assert await (await client.get("/slow", headers={"Host": "acme.localhost"})).get_json() == {"slow": True}


async def test_program_is_answered_401(app: Quart) -> None:
    """It could do nothing with a page."""
    assert (await get(app, "/members/x", accept=JSON))[:2] == (401, "application/problem+json")


async def test_visitor_who_is_logged_in_sees_the_view(app: Quart) -> None:
    """With a session of this tenant the view runs, with its arguments."""
    client = app.test_client()
    await client.post("/sign-in", headers={"Host": "acme.localhost"})

    answer = await client.get("/members/x", headers={"Host": "acme.localhost", "Accept": BROWSER})

    assert await answer.get_json() == {"name": "x"}


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ("/notes?page=2", "/notes?page=2"),
        ("https://evil.example/", "/"),
        ("//evil.example/", "/"),
        ("/\\evil.example", "/"),
        ("/\t/evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("", "/"),
    ],
)
async def test_way_back_stays_at_this_host(app: Quart, sent: str, path: str) -> None:
    """Anybody can make a link to the sign-in page."""
    answer = await app.test_client().get("/sign-in", headers={"Host": "acme.localhost"}, query_string={"next": sent})

    assert await answer.get_json() == {"next": path}


def test_error_of_an_app_says_its_code_in_its_class_or_in_its_first_line() -> None:
    """An app may set the attributes of its own error, or name them as this library does; the rest is inherited."""

    class SeatsTakenError(TenantError):
        """All seats are taken."""

        code = "seats_taken"
        status = 409

    class LastSeatTakenError(SeatsTakenError, code="last_seat_taken", for_visitors=True):
        """The last seat is taken."""

    assert (SeatsTakenError.code, SeatsTakenError.status) == ("seats_taken", 409)
    assert SeatsTakenError("secret").visitor_text == "All seats are taken."
    assert (LastSeatTakenError.code, LastSeatTakenError.status) == ("last_seat_taken", 409)
    assert LastSeatTakenError("seat 7 is taken").visitor_text == "seat 7 is taken"
    assert (TenantError.code, TenantError.status) == ("tenant_error", 500)

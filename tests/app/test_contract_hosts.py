"""The contract, part one: hosts."""

import httpx
import pytest
from werkzeug.exceptions import NotFound

from tests.support.processes import Server

pytestmark = pytest.mark.slow

NOT_FOUND = {
    "type": "about:blank",
    "title": "Not Found",
    "status": 404,
    "detail": NotFound.description,
    "code": "not_found",
}

FOREIGN_HOSTS = [
    "evil.org",
    "company1.evil.org",
    "company1.localhost.evil.org",
    "xlocalhost",
    "company1.xlocalhost",
    "company1localhost",
    "a.company1.localhost",
    "company1..localhost",
    ".company1.localhost",
    ".localhost",
    "-company1.localhost",
    "company1-.localhost",
    "company_1.localhost",
    "pg_catalog.localhost",
    "company1.localhost..",
    "company1.localhost:5000:5000",
    "company1.localhost:port",
    "company1.localhost:",
    "company1.localhost:123456",
    "127.0.0.1",
    "127.0.0.1:{port}",
    "[::1]:{port}",
    "company1",
    "*.localhost",
    "%63ompany1.localhost",
    "company1.localhost%00",
    "company1.localhost/evil.org",
    "user@company1.localhost",
    "company1.localhost,evil.org",
    "company1.localhost?",
    "company1.localhost#",
    f"{'a' * 64}.localhost",
    "xn--company1-.localhost",
    "",
]


async def send(server: Server, method: str, host: str, path: str) -> httpx.Response:
    """Send one request with *host* as its Host header."""
    async with server.client(host) as client:
        return await client.request(method, path)


@pytest.mark.parametrize(
    "host",
    [
        "company1.localhost",
        "company1.localhost:{port}",
        "company1.localhost:5000",
        "company1.localhost:80",
        "company1.localhost:443",
        "company1.localhost:65535",
        "company1.localhost.",
        "company1.localhost.:{port}",
        "COMPANY1.LocalHost",
    ],
)
async def test_tenant_host_is_found_in_any_case_and_on_any_port(server: Server, host: str) -> None:
    """Case, port and one trailing dot make no difference to which tenant is meant."""
    answer = await send(server, "GET", host, "/data")

    assert (answer.status_code, answer.json()["code"]) == (401, "not_logged_in")


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
@pytest.mark.parametrize(("method", "path"), [("GET", "/data"), ("POST", "/login"), ("GET", "/static/style.css")])
async def test_foreign_host_gets_404(server: Server, host: str, method: str, path: str) -> None:
    """Outside the domain, malformed or too deep: 404, always the same body."""
    answer = await send(server, method, host, path)

    assert answer.status_code == 404
    assert answer.json() == NOT_FOUND
    assert answer.headers["content-type"] == "application/problem+json"


async def test_foreign_host_is_told_no_more_than_an_unknown_path(server: Server) -> None:
    """Nobody can tell from the answer whether it was the host or the path that was unknown."""
    foreign = await send(server, "GET", "evil.org", "/data")
    unknown = await send(server, "GET", "company1.localhost", "/nothing")

    assert foreign.content == unknown.content


@pytest.mark.parametrize("path", ["/", "/static/style.css", "/healthz", "/readyz"])
async def test_domain_itself_serves_the_public_site(server: Server, path: str) -> None:
    """The domain is the public site: a page, static files, the probes."""
    answer = await send(server, "GET", "localhost:{port}", path)

    assert answer.status_code == 200


@pytest.mark.parametrize(("method", "path"), [("POST", "/login"), ("POST", "/logout"), ("GET", "/data")])
async def test_domain_itself_has_no_tenant_routes(server: Server, method: str, path: str) -> None:
    """There is no tenant on the domain itself."""
    answer = await send(server, method, "localhost:{port}", path)

    assert (answer.status_code, answer.json()) == (404, NOT_FOUND)


@pytest.mark.parametrize("slug", ["company3", "nobody", "public", "www", "0", "a" * 63])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/login"), ("POST", "/logout"), ("GET", "/data"), ("GET", "/static/style.css")],
)
async def test_unknown_tenant_gets_400_on_every_tenant_route(server: Server, slug: str, method: str, path: str) -> None:
    """A well-formed label that is no tenant, reserved names included, is 400 unknown_tenant."""
    answer = await send(server, method, f"{slug}.localhost", path)

    assert (answer.status_code, answer.json()["code"]) == (400, "unknown_tenant")


@pytest.mark.parametrize("host", ["company1.localhost", "localhost", "nobody.localhost", "evil.org", "127.0.0.1", ""])
@pytest.mark.parametrize(("path", "status"), [("/healthz", "ok"), ("/readyz", "ready")])
async def test_probes_answer_on_any_host(server: Server, host: str, path: str, status: str) -> None:
    """A load balancer asks by whatever name it knows, an IP address included."""
    answer = await send(server, "GET", host, path)

    assert (answer.status_code, answer.json()) == (200, {"status": status})


async def test_public_page_names_no_tenant(server: Server) -> None:
    """Who the customers are is nobody's business."""
    answer = await send(server, "GET", "localhost:{port}", "/")

    assert answer.headers["content-type"].startswith("text/html")
    assert "company1" not in answer.text

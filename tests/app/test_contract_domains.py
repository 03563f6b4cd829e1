"""The contract, on a tenant's own domain and at the old address of a renamed one."""

from pathlib import Path

import pytest

from quart_tenants.domain import parse_domain
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.tenants.domains import add_domain
from quart_tenants.postgres.tenants.lifecycle import rename_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug
from tests.support.processes import QUICK_PASSWORDS, run_server

pytestmark = pytest.mark.slow

LOGIN = {"uname": "user_1", "passwd": "foo"}


async def test_own_domain_and_old_address_are_served(
    database: Database, settings: Settings, database_url: str, tmp_path: Path
) -> None:
    """The own domain is the tenant's address as the subdomain is; the old address keeps path, query and port."""
    shop = parse_domain("shop.example.com")
    await add_domain(database, parse_slug("company1"), shop, settings=settings, trusted=True)
    await rename_tenant(database, parse_slug("company2"), parse_slug("second"), settings=settings)

    with run_server(database_url, tmp_path, QUART_TENANTS_TRUSTED_PROXIES="127.0.0.1", **QUICK_PASSWORDS) as server:
        async with server.client("Shop.Example.com:{port}") as client:
            anonymous = await client.get("/data")
            login = await client.post("/login", data=LOGIN)
            session = login.headers["set-cookie"].partition(";")[0]
            data = await client.get("/data?limit=1", headers={"Cookie": session})
            probe = await client.get("/healthz")
        async with server.tenant("second") as other:
            foreign = await other.get("/data", headers={"Cookie": session})
        async with server.tenant("company2") as old:
            redirect = await old.post(f"http://127.0.0.1:{server.port}//login?a=%2F..%2e", data=LOGIN)
            forwarded = await old.get(
                "/data", headers={"X-Forwarded-Proto": "https", "X-Forwarded-Host": "company2.localhost"}
            )
            unknown = await old.get("/nothing")
        async with server.client("localhost") as apex:
            asked = [
                (await apex.get("/.well-known/tenants/ask", params={"domain": name})).status_code
                for name in ("shop.example.com", "company2.localhost", "nobody.localhost")
            ]

    assert (anonymous.status_code, anonymous.json()["code"]) == (401, "not_logged_in")
    assert (login.status_code, probe.status_code) == (200, 200)
    assert data.json()["data"][0]["description"] == "company 1 data"
    assert (foreign.status_code, foreign.json()["code"]) == (400, "wrong_tenant")
    assert redirect.status_code == 308
    assert redirect.headers["location"] == f"http://second.localhost:{server.port}//login?a=%2F..%2e"
    assert forwarded.headers["location"] == "https://second.localhost/data"
    assert unknown.status_code == 404
    assert asked == [200, 200, 404]

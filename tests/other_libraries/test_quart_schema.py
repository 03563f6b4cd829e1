"""quart-schema: the OpenAPI description of what tenants' hosts serve, on the domain itself."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from quart import Quart, ResponseReturnValue
from quart_schema import OpenAPIProvider, QuartSchema, validate_request
from werkzeug.routing import Rule

from quart_tenants import QuartTenants, tenant_connection
from tests.other_libraries.support import make_app


class TenantOpenAPI(OpenAPIProvider):
    """Describes what tenants' hosts serve. The host is no parameter of a request."""

    def generate_rules(self) -> Iterable[Rule]:
        """Leave out what other hosts serve."""
        return (rule for rule in super().generate_rules() if rule.host == QuartTenants.host)

    def build_paths(self, rule: Rule) -> tuple[dict[str, Any], dict[str, Any]]:
        """Leave out the part of the host."""
        paths, components = super().build_paths(rule)
        for operations in paths.values():
            for operation in operations.values():
                operation["parameters"] = [one for one in operation["parameters"] if one["name"] != "tenant"]
        return paths, components


@dataclass
class NewNote:
    """The body of a request."""

    description: str


def add_routes(app: Quart, tenants: QuartTenants) -> None:
    """Add a description, and what it describes."""
    with tenants.routes_at(tenants.apex_host):
        QuartSchema(app, openapi_provider_class=TenantOpenAPI)

    @app.post("/notes/<int:number>", host=tenants.host)
    @validate_request(NewNote)
    async def add_note(number: int, data: NewNote) -> ResponseReturnValue:
        async with tenant_connection() as connection:
            query = "INSERT INTO company_data (id, description) VALUES ($1, $2) RETURNING *"
            (row,) = await connection.fetch(query, number, data.description)
        return {"note": dict(row)}, 201


async def test_description_is_on_the_domain_itself(database_url: str) -> None:
    """It names the tenants' routes, with the parameters of the path only; no tenant's host serves it."""
    app, tenants = make_app(database_url)
    add_routes(app, tenants)
    async with app.test_app():
        client = app.test_client()
        answer = await client.get("/openapi.json", headers={"Host": "localhost"})
        page = await client.get("/docs", headers={"Host": "localhost"})
        elsewhere = await client.get("/openapi.json", headers={"Host": "acme.localhost"})

    description = await answer.get_json()
    assert list(description["paths"]) == ["/notes/{number}"]
    assert [one["name"] for one in description["paths"]["/notes/{number}"]["post"]["parameters"]] == ["number"]
    assert "/openapi.json" in await page.get_data(as_text=True)
    assert elsewhere.status_code == 404


async def test_request_is_checked_and_rows_are_answered(database_url: str) -> None:
    """A body that is not as described is 400; a row of the database is JSON."""
    app, tenants = make_app(database_url)
    add_routes(app, tenants)
    async with app.test_app():
        client = app.test_client()
        wrong = await client.post("/notes/7", json={"text": 1}, headers={"Host": "acme.localhost"})
        right = await client.post("/notes/7", json={"description": "x"}, headers={"Host": "acme.localhost"})

    assert wrong.status_code == 400
    assert (right.status_code, await right.get_json()) == (201, {"note": {"id": 7, "description": "x"}})


async def test_description_is_nowhere_without_a_host(database_url: str) -> None:
    """Negative control: its routes name no host."""
    app, _ = make_app(database_url)
    QuartSchema(app)
    async with app.test_app():
        for host in ("localhost", "acme.localhost"):
            answer = await app.test_client().get("/openapi.json", headers={"Host": host})
            assert answer.status_code == 404

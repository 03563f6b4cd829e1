"""The reference app's OpenAPI description, which the extra `openapi` brings."""

import re
from pathlib import Path
from typing import Any

import pytest

from quart_tenants.app import create_app

REFERENCE = Path(__file__).parents[2] / "docs" / "reference-app.md"


async def read_description(database_url: str, scheme: str = "http") -> dict[str, Any]:
    """Return what /openapi.json of the domain itself says."""
    app = create_app({"TENANTS_DATABASE_URL": database_url, "SECRET_KEY": "0123456789abcdef" * 2})
    async with app.test_app():
        answer = await app.test_client().get("/openapi.json", headers={"Host": "localhost"}, scheme=scheme)
    assert answer.status_code == 200
    description: dict[str, Any] = await answer.get_json()
    return description


async def test_description_names_the_tenants_routes(database_url: str) -> None:
    """Those that docs/reference-app.md has for programs, but for the files, with the cookie that they need."""
    description = await read_description(database_url)

    described = {f"{method.upper()} {path}" for path, methods in description["paths"].items() for method in methods}
    for_programs, for_people = REFERENCE.read_text(encoding="utf-8").split("\n## For people\n")
    written = re.findall(r"^\| `(\w+ /[^`<]*)` \| tenant \|", for_programs, re.MULTILINE)
    assert described == set(written)
    assert "`GET /sign-in`" in for_people
    assert description["components"]["securitySchemes"]["session"]["in"] == "cookie"


async def test_every_reference_of_the_description_leads_somewhere(database_url: str) -> None:
    """Programs that read it stop at a name that it does not explain."""
    description = await read_description(database_url)

    names = set(re.findall(r"#/components/schemas/(\w+)", str(description)))
    assert "Item" in names
    assert names <= set(description["components"]["schemas"])
    assert description["paths"]["/data"]["get"]["security"] == [{"session": []}]
    assert "security" not in description["paths"]["/login"]["post"]
    assert description["paths"]["/data"]["get"]["responses"].keys() == {"200", "400", "401"}
    assert [one["name"] for one in description["paths"]["/data"]["get"]["parameters"]] == ["limit", "after"]


@pytest.mark.parametrize(("scheme", "name"), [("http", "session"), ("https", "__Host-session")])
async def test_cookie_has_the_name_that_a_login_gives_it(database_url: str, scheme: str, name: str) -> None:
    """Over https it is another one."""
    description = await read_description(database_url, scheme)
    assert description["components"]["securitySchemes"]["session"]["name"] == name


async def test_app_without_the_extra_has_no_description(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is otherwise the same."""
    monkeypatch.setattr("quart_tenants.app.find_spec", lambda name: None)
    app = create_app({"TENANTS_DATABASE_URL": database_url, "SECRET_KEY": "0123456789abcdef" * 2})
    async with app.test_app():
        answer = await app.test_client().get("/openapi.json", headers={"Host": "localhost"})
    assert answer.status_code == 404

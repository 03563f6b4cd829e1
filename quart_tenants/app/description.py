"""Describe what tenants' hosts serve, by OpenAPI, at /openapi.json of the domain itself. Needs the extra `openapi`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from quart import Quart, jsonify, request
from quart.wrappers import Response
from quart_schema import APIKeySecurityScheme, DataSource, Info, OpenAPIProvider, QuartSchema
from quart_schema.documentation import document
from werkzeug.routing import Rule

from quart_tenants.web.routing.host_routing import APEX_HOST, TENANT_HOST
from quart_tenants.web.sessions.session_interface import get_cookie_name

_HOST_ARGUMENT = "tenant"
_LOGGED_IN = {400: "Another tenant's session, or no such tenant.", 401: "Nobody is logged in."}
_SESSION = "session"
_PROBLEM = "application/problem+json"


@dataclass
class Credentials:
    """Who wants to log in."""

    uname: str
    passwd: str


@dataclass
class NewPassword:
    """The old password and the new one."""

    passwd: str
    new_passwd: str


@dataclass
class Done:
    """It was done."""

    msg: str


@dataclass
class Item:
    """A row of the tenant's data."""

    id: int
    description: str


@dataclass
class Data:
    """The tenant's data, in order of id."""

    data: list[Item]


@dataclass
class Page:
    """Which rows to answer: so many at most, with larger ids than this."""

    limit: int = 1000
    after: int | None = None


@dataclass
class Problem:
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str


# quart-schema 0.25 forgets the classes that are inside others.
_, _COMPONENTS = msgspec.json.schema_components([Item], ref_template="#/components/schemas/{name}")
_ROUTES: dict[str, tuple[Any, Any, Any, dict[int, str]]] = {
    # What stands in the query, what in the body, what is answered, and what else may be.
    "auth.login": (None, Credentials, Done, {400: "No such tenant.", 401: "Wrong.", 429: "Too many attempts."}),
    "auth.logout": (None, None, Done, {400: "Another tenant's session, or no such tenant."}),
    "auth.change_password": (None, NewPassword, Done, _LOGGED_IN | {429: "Too many attempts."}),
    "data.list_data": (Page, None, Data, _LOGGED_IN),
    "data.export_data": (None, None, Data, _LOGGED_IN),
}


class _Description(OpenAPIProvider):
    """The description of `_ROUTES`. The host is no parameter of a request."""

    def generate_rules(self) -> Iterable[Rule]:
        return (rule for rule in super().generate_rules() if rule.host == TENANT_HOST and rule.endpoint in _ROUTES)

    def build_paths(self, rule: Rule) -> tuple[dict[str, Any], dict[str, Any]]:
        paths, components = super().build_paths(rule)
        problem, definitions = self.build_response_object(Problem, None)
        schema = problem["content"].pop("application/json")
        others = _ROUTES[rule.endpoint][3]
        for operation in (operation for operations in paths.values() for operation in operations.values()):
            operation["parameters"] = [one for one in operation["parameters"] if one["name"] != _HOST_ARGUMENT]
            operation["responses"] |= {
                status: {"description": text, "content": {_PROBLEM: schema}} for status, text in others.items()
            }
            if others.get(401) == _LOGGED_IN[401]:
                operation["security"] = [{_SESSION: []}]
        return paths, components | definitions | _COMPONENTS


def add_description(app: Quart) -> None:
    """Serve the description of *app* at /openapi.json of the domain itself."""
    for endpoint, (query, body, answer, _) in _ROUTES.items():
        describe = document(
            querystring=query, request=body, request_source=DataSource.FORM, responses={200: (answer, None)}
        )
        describe(app.view_functions[endpoint])
    session = APIKeySecurityScheme(name=app.config["SESSION_COOKIE_NAME"], in_="cookie")
    # It is not made for the app by QuartSchema(app), which would convert each answer once more.
    schema = QuartSchema(info=Info("quart_tenants", "1"), security_schemes={_SESSION: session})
    app.config.setdefault("QUART_SCHEMA_CONVERT_CASING", False)
    app.config.setdefault("QUART_SCHEMA_CONVERSION_PREFERENCE", "msgspec")
    provider = _Description(app, schema)

    @app.get("/openapi.json", host=APEX_HOST)
    async def describe_app() -> Response:
        description = provider.schema()
        name = get_cookie_name(app, secure=request.is_secure)
        description["components"]["securitySchemes"][_SESSION]["name"] = name
        return jsonify(description)

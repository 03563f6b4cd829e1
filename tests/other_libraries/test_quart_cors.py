"""quart-cors: pages of other sites may call what is made for them, and nothing else."""

from quart import Quart, ResponseReturnValue, request
from quart_cors import route_cors

from quart_tenants import QuartTenants, allow_from_elsewhere
from tests.other_libraries.support import make_app

PARTNER = "https://app.partner.example"


def add_routes(app: Quart, tenants: QuartTenants) -> None:
    """Add a route for other sites, and one that is not."""

    @app.post("/api/orders", host=tenants.host)
    @allow_from_elsewhere
    @route_cors(allow_origin=["https://app.partner.example"], allow_headers=["Authorization"])
    async def order() -> ResponseReturnValue:
        # A page of any site may post here: only the token counts, never the session.
        if not await is_valid(request.headers.get("Authorization", "")):
            return {"error": "a token is needed"}, 401
        return {"ordered": True}

    @app.post("/own", host=tenants.host)
    @route_cors(allow_origin=[PARTNER])
    async def own() -> ResponseReturnValue:
        return {"done": True}


async def is_valid(token: str) -> bool:
    """Return whether *token* is the one that the partner has."""
    return token == "Bearer right"


async def test_allowed_site_may_post_with_a_token(database_url: str) -> None:
    """Browsers ask first by OPTIONS, and send the request if the answer allows it."""
    app, tenants = make_app(database_url)
    add_routes(app, tenants)
    page = {"Host": "acme.localhost", "Origin": PARTNER, "Sec-Fetch-Site": "cross-site"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "Authorization"}
    async with app.test_app():
        client = app.test_client()
        asked = await client.options("/api/orders", headers=page | asks)
        answer = await client.post("/api/orders", headers=page | {"Authorization": "Bearer right"})
        without = await client.post("/api/orders", headers=page)

    assert asked.status_code == 200
    assert asked.headers["Access-Control-Allow-Origin"] == PARTNER
    assert asked.headers["Access-Control-Allow-Headers"].lower() == "authorization"
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, PARTNER)
    assert without.status_code == 401


async def test_cors_alone_lets_nobody_post(database_url: str) -> None:
    """The view must say that it is for other sites, because a session is sent from sibling subdomains, too."""
    app, tenants = make_app(database_url)
    add_routes(app, tenants)
    async with app.test_app():
        answer = await app.test_client().post("/own", headers={"Host": "acme.localhost", "Origin": PARTNER})

    assert answer.status_code == 403


async def test_other_site_reads_nothing(database_url: str) -> None:
    """It is told no origin that may, so its browser keeps the answer from it."""
    app, tenants = make_app(database_url)
    add_routes(app, tenants)
    async with app.test_app():
        headers = {"Host": "acme.localhost", "Origin": "https://evil.example", "Authorization": "Bearer right"}
        answer = await app.test_client().post("/api/orders", headers=headers)

    assert "Access-Control-Allow-Origin" not in answer.headers

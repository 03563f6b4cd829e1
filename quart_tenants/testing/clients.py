"""A test client at one tenant's address."""

from dataclasses import dataclass, field
from typing import Any

from quart import Quart, Response
from quart.testing import QuartClient
from quart.typing import TestHTTPConnectionProtocol, TestWebsocketConnectionProtocol

from quart_tenants.tenant import Tenant
from quart_tenants.web.sessions.tenant_sessions import start_session


@dataclass(frozen=True)
class Exchange:
    """One request of a client, and what came back.

    Attributes:
        path: With the query, if the test has written it so.
        method: Such as `POST`.
        options: The other arguments of `QuartClient.open`.
        status: Of the answer.
        body: Of the answer.
    """

    path: str
    method: str
    options: dict[str, Any]
    status: int
    body: bytes


class TenantClient(QuartClient):
    """Quart's test client at the address of one tenant, with a cookie jar of its own.

    Attributes:
        tenant: The tenant at whose host the client asks.
        exchanges: All requests that were made by `open`, `get`, `post` and so on, for `hunt_leaks`.

    Example:
        ```python
        async def test_page_needs_a_login(ada: TenantClient) -> None:
            assert (await ada.get("/me")).status_code == 401
            await ada.log_in("7")
            assert (await ada.get("/me")).status_code == 200
        ```
    """

    # pytest would take it for a class of tests.
    __test__ = False

    def __init__(self, app: Quart, tenant: Tenant, host: str) -> None:
        super().__init__(app)
        self.tenant = tenant
        self.host = host
        self.exchanges: list[Exchange] = []

    async def open(self, path: str, *, method: str = "GET", headers: Any = None, **options: Any) -> Response:
        """Make a request, as `QuartClient.open` does it."""
        response = await super().open(path, method=method, headers=self._add_host(headers), **options)
        body = await response.get_data(as_text=False)
        if headers is not None:
            options = options | {"headers": headers}
        self.exchanges.append(Exchange(path, method, options, response.status_code, body))
        return response

    def request(self, path: str, *, headers: Any = None, **options: Any) -> TestHTTPConnectionProtocol:
        """Begin a request, as `QuartClient.request` does it."""
        return super().request(path, headers=self._add_host(headers), **options)

    def websocket(self, path: str, *, headers: Any = None, **options: Any) -> TestWebsocketConnectionProtocol:
        """Open a websocket, as `QuartClient.websocket` does it."""
        return super().websocket(path, headers=self._add_host(headers), **options)

    async def log_in(self, user: str) -> None:
        """Begin a session of *user* without a password, as the app's login does it after the check."""
        app = self.app
        async with app.test_request_context("/", headers={"Host": self.host}) as context:
            session = await start_session(user)
            response = Response()
            await app.session_interface.save_session(app, session, response)
            del context
        name, _, value = response.headers["Set-Cookie"].partition(";")[0].partition("=")
        self.set_cookie(self.host, name, value)

    def _add_host(self, headers: Any) -> dict[str, str]:
        return {"Host": self.host} | dict(headers or {})


@dataclass
class ClientMaker:
    """Makes clients for the tenants of one app. The fixture `client_for` is one.

    Attributes:
        app: The app that is asked.
        domain: The setting `TENANTS_DOMAIN` of the app.
        made: All clients that it has made, in their order.

    Example:
        ```python
        async def test_page_needs_a_login(client_for: ClientMaker, first_tenant: Tenant) -> None:
            stranger = await client_for(first_tenant)
            assert (await stranger.get("/me")).status_code == 401
        ```
    """

    app: Quart
    domain: str
    made: list[TenantClient] = field(default_factory=list)

    async def __call__(self, tenant: Tenant, *, user: str | None = None) -> TenantClient:
        """Return a client at the tenant's address.

        Args:
            tenant: A tenant.
            user: Who is logged in, as the app names users to `start_session`; None for nobody.

        Raises:
            TypeError: *tenant* is no tenant, such as a slug.
        """
        if not isinstance(tenant, Tenant):
            raise TypeError(f"{tenant!r} is no tenant: take first_tenant, or await new_tenant({tenant!r})")
        client = TenantClient(self.app, tenant, f"{tenant.slug}.{self.domain}")
        if user is not None:
            await client.log_in(user)
        self.made.append(client)
        return client

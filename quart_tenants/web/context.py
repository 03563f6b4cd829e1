"""Find the tenant of the current request, and lend a connection to its tables."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, cast
from urllib.parse import quote

from quart import has_request_context, has_websocket_context, request, websocket
from quart.wrappers import Request, Websocket
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header
from werkzeug.local import LocalProxy

from quart_tenants.connection import Connection
from quart_tenants.errors import NoTenantError, OtherTenantError, SchemaBehindError, TenantError, UnknownTenantError
from quart_tenants.tenant import Slug, Tenant, parse_slug
from quart_tenants.web.hosts import read_host
from quart_tenants.web.state import TenantState, get_state, see_through

# The characters that a path may contain beside letters and digits, the percent sign of escapes included
# (RFC 3986, section 3.3).
_AS_SENT = "%!$&'()*+,/:;=@-._~"

TENANT_OF_SCOPE = "quart_tenants.tenant"
"""A key in the scope of a request whose tenant is known."""

_SLUG = "_quart_tenants_slug"
_TENANT = "_quart_tenants_tenant"

_served: ContextVar[Request | Websocket | None] = ContextVar("quart_tenants_served", default=None)

_worked_for: ContextVar[Tenant | None] = ContextVar("quart_tenants_worked_for", default=None)

reads_only: ContextVar[bool] = ContextVar("quart_tenants_reads_only", default=False)
"""Whether every block that is lent here is read-only."""


def find_request() -> Request | Websocket | None:
    """Return the request or websocket that is being served here, or None."""
    if has_request_context():
        return cast("Request", see_through(request))
    return cast("Websocket", see_through(websocket)) if has_websocket_context() else _served.get()


def find_address() -> str | None:
    """Return the visitor's IP address, or None where there is none, such as behind a unix socket."""
    asked = find_request()
    return None if asked is None else asked.remote_addr


def describe_request() -> str:
    """Return what is being served here, for a line of the log."""
    asked = find_request()
    return "no request" if asked is None else f"{getattr(asked, 'method', 'websocket')} {asked.path}"


def prefers_html(asked: Request | Websocket) -> bool:
    """Return whether *asked* comes from a browser that shows a page: it likes HTML best (RFC 9110, section 12.5.1).

    A client that takes anything, as curl and fetch() do, is a program.
    """
    if not isinstance(asked, Request):
        return False
    return likes_html(",".join(asked.headers.getlist("Accept")))


def likes_html(accept: str) -> bool:
    """Return whether the header *accept*, empty if there is none, likes HTML better than JSON."""
    accepted = parse_accept_header(accept, MIMEAccept)
    return accepted.best_match(["application/problem+json", "application/json", "text/html"]) == "text/html"


def get_sent_target(asked: Request) -> str:
    """Return the path and the query of *asked*, escaped as they were sent: a decoded %2F would lead elsewhere."""
    path = bytes(asked.scope.get("raw_path") or b"")
    if not path.startswith(b"/"):
        # The request line was such as "GET http://host/path".
        path = quote(asked.root_path + asked.path).encode()
    target = quote(path, safe=_AS_SENT)
    if asked.query_string:
        target += "?" + quote(asked.query_string, safe=_AS_SENT + "?")
    return target


def remember_request() -> Request | Websocket | None:
    """Let the rest of this task, and the tasks that it starts, find the request that is being served here. Return it.

    From Quart 0.23 on an app context that is opened inside a request hides the request.
    """
    asked = find_request()
    _served.set(asked)
    return asked


def find_slug_of_host(host: str, state: TenantState) -> Slug | None:
    """Return the slug whose address *host* is, or None. There may be no tenant with this slug."""
    named = read_host(host, state.settings.domain)
    return named.slug if named.domain is None else state.find_slug_by_domain(named.domain)


def find_requested_slug(asked: BaseRequestWebsocket, state: TenantState) -> Slug | None:
    """Return the slug whose address the host of *asked* is, or None.

    The answer stays the same during the whole request, even if a domain changes its tenant meanwhile.
    """
    known = vars(asked)
    if _SLUG not in known:
        known[_SLUG] = find_slug_of_host(asked.host, state)
    slug: Slug | None = known[_SLUG]
    return slug


def may_be_tenants(host: str) -> bool:
    """Return whether *host* can be the address of a tenant, of which this worker need not know."""
    named = read_host(host, get_state().settings.domain)
    return named.slug is not None or named.domain is not None


async def look_again(asked: BaseRequestWebsocket) -> None:
    """Read what tenants there are now, and let *asked* find its tenant among them.

    Raises:
        RegistryStaleError: That cannot be read.
    """
    await get_state().catch_up()
    known = vars(asked)
    known.pop(_SLUG, None)
    known.pop(_TENANT, None)


@contextmanager
def working_for(tenant: Tenant) -> Iterator[None]:
    """Let *tenant* be the current one inside the block, where there is no request at a tenant's host."""
    token = _worked_for.set(tenant)
    try:
        yield
    finally:
        _worked_for.reset(token)


def find_current_tenant() -> Tenant | None:
    """Return the tenant whose host this request or websocket names, or for which a job works; None elsewhere.

    Raises:
        UnknownTenantError: The host has the form of a tenant's, but there is none.
        RegistryStaleError: The worker cannot know whether there is one.
    """
    worked_for = _worked_for.get()
    if worked_for is not None:
        return worked_for
    asked = find_request()
    return None if asked is None else find_tenant_of(asked)


def find_tenant_of(asked: BaseRequestWebsocket, state: TenantState | None = None) -> Tenant | None:
    """Return the tenant whose host *asked* names, or None for every other host. *state*: default that of the app.

    Raises:
        UnknownTenantError: The host has the form of a tenant's, but there is none.
        RegistryStaleError: The worker cannot know whether there is one.
    """
    # Kept on the request and not in g, because an app context inside this one has a g of its own.
    known = vars(asked)
    if _TENANT not in known:
        if state is None:
            state = get_state()
        slug = find_requested_slug(asked, state)
        known[_TENANT] = found = None if slug is None else state.registry.get_tenant(slug)
        if found is not None:
            scope: Any = asked.scope
            scope[TENANT_OF_SCOPE] = found
    tenant: Tenant | None = known[_TENANT]
    return tenant


def get_current_tenant() -> Tenant:
    """Return the tenant whose host this request or websocket names.

    Raises:
        NoTenantError: This is no request at a tenant's host.
        UnknownTenantError: The host has the form of a tenant's, but there is none.
        RegistryStaleError: The worker cannot know whether there is one.
    """
    tenant = find_current_tenant()
    if tenant is None:
        raise NoTenantError("this is no request at a tenant's host; name the tenant: tenant_connection(tenant)")
    return tenant


def find_tenant() -> Tenant | None:
    """Return the tenant of the current request or websocket, or None if there is none, whatever the reason.

    This raises no error.

    Example:
        ```python
        tenant = find_tenant()
        print("the domain itself" if tenant is None else tenant.slug)
        ```
    """
    try:
        return find_current_tenant()
    except (TenantError, RuntimeError):
        # The second is raised while the app is not serving.
        return None


class _CurrentTenant(LocalProxy[Tenant]):
    """A proxy that tools may look at where there is no tenant: they ask for names such as `__func__`."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return find_tenant() is not None

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._get_current_object(), name)
        except NoTenantError as error:
            if name.startswith("_"):
                raise AttributeError(name) from error
            raise


current_tenant = cast("Tenant", _CurrentTenant(get_current_tenant))
"""The tenant of the current request or websocket.

It is false where there is none, also at an address that no tenant has: `{% if current_tenant %}`. Using anything of it
there raises `NoTenantError` or `UnknownTenantError`.

Example:
    ```python
    @app.get("/", host=tenants.any_host)
    async def index() -> str:
        return current_tenant.name if current_tenant else "the domain itself"
    ```
"""


def tenant_connection(
    tenant: Tenant | str | None = None, *, read_only: bool = False
) -> AbstractAsyncContextManager[Connection]:
    """Return a block that lends a connection which sees one tenant's tables and no others.

    `async with tenant_connection() as connection:` lends it. A transaction begins with the first statement
    that does more than read; leaving the block commits it, leaving it by an exception or a cancellation
    rolls it back. No connection is taken before the block is entered.

    Args:
        tenant: A tenant, or its slug. Default: the current one. Needed in jobs and scripts, where
            the call stands inside `async with app.app_context()`.
        read_only: Whether PostgreSQL refuses every write in this block.

    Raises:
        NoTenantError: No tenant is named and there is no current one. There is no default.
        OtherTenantError: A request at one tenant's host asks for another tenant, or the tenant was
            dropped and its name is another one's.
        InvalidSlugError: It is no slug.
        RegistryStaleError: The worker cannot know whether the tenant still exists.

    Entering the block raises `UnknownTenantError` if no tenant has that slug. Entering and leaving it raise what
    `Database.tenant_connection` says.

    Example:
        ```python
        @app.get("/orders", host=tenants.host)
        async def orders() -> ResponseReturnValue:
            async with tenant_connection() as connection:
                rows = await connection.fetch("SELECT id, cents FROM orders ORDER BY id")
            return {"orders": [dict(row) for row in rows]}
        ```
    """
    current = find_current_tenant()
    given = tenant if tenant is not None else current or get_current_tenant()
    only_reads = read_only or reads_only.get()
    state = get_state()
    try:
        known = _get_known(given, current, state)
    except (UnknownTenantError, SchemaBehindError):
        return _lend_later(given, current, state, read_only=only_reads)
    return _lend(known, state, read_only=only_reads)


def shared_connection() -> AbstractAsyncContextManager[Connection]:
    """Return a block that lends a connection which sees the shared schemas only, and may write there.

    This is for operators' pages and jobs. It acts as the role that has logged in, also where each tenant has a role.
    The tables of tenants can be reached by their full names, so never run what a visitor typed here.

    Raises:
        NoTenantError: There is no current app, or it has no tenants.
        SettingError: `TENANTS_SHARED_SCHEMAS` names no schema.

    Entering and leaving the block raise what `Database.tenant_connection` says.

    Example:
        ```python
        async with shared_connection() as connection:
            await connection.execute("UPDATE plans SET price = $1 WHERE id = $2", 900, 1)
        ```
    """
    state = get_state()
    return state.database.shared_connection(shared_version=state.registry.shared_version)


def _lend(tenant: Tenant, state: TenantState, *, read_only: bool) -> AbstractAsyncContextManager[Connection]:
    version = state.registry.shared_version
    return state.database.tenant_connection(tenant, read_only=read_only, shared_version=version, is_known=True)


@asynccontextmanager
async def _lend_later(
    given: Tenant | str, current: Tenant | None, state: TenantState, *, read_only: bool
) -> AsyncIterator[Connection]:
    """Lend a connection for a tenant that may have been created, or migrated, a moment ago: look again first."""
    await state.catch_up()
    async with _lend(_get_known(given, current, state), state, read_only=read_only) as connection:
        yield connection


def _get_known(given: Tenant | str, current: Tenant | None, state: TenantState) -> Tenant:
    """Return the tenant *given* as it is now. The errors are those of `tenant_connection`."""
    # Asked again each time: a websocket or a job may be older than a drop or a new name of its tenant.
    registry = state.registry
    known = registry.get_tenant(parse_slug(given)) if isinstance(given, str) else registry.get_present(given)
    for expected in (given, current):
        if isinstance(expected, Tenant) and expected.id != known.id:
            raise OtherTenantError(
                f"a request or job of tenant {expected.slug!r} (number {expected.id}) asked for {known.slug!r}"
            )
    return known

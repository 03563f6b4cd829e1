"""Know the current tenant, and lend its connection."""

from typing import TYPE_CHECKING, cast

from quart import current_app, g, has_app_context, has_request_context, has_websocket_context, request, websocket
from werkzeug.local import LocalProxy

from quart_tenants.errors import NoTenantError, WrongTenantError
from quart_tenants.tenant import Slug, Tenant, parse_slug

if TYPE_CHECKING:
    from quart_tenants.postgres.database import Block
    from quart_tenants.web.extension import QuartTenants

EXTENSION_NAME = "quart_tenants"
"""The key of the extension in `app.extensions`."""

TENANT_ARGUMENT = "tenant"
"""The URL argument that holds the tenant's slug, until `find_current_tenant` takes it out."""


def get_extension() -> "QuartTenants":
    """Return the extension of the current app.

    Raises:
        NoTenantError: There is no current app, or it has no tenants.
    """
    if not has_app_context():
        raise NoTenantError("there is no current app: use `async with app.app_context()` around this")
    extension = current_app.extensions.get(EXTENSION_NAME)
    if extension is None:
        raise NoTenantError("this app has no tenants: call QuartTenants(app)")
    return cast("QuartTenants", extension)


def find_current_tenant() -> Tenant | None:
    """Return the tenant whose host this request or websocket names, or None for every other host.

    Raises:
        UnknownTenantError: The host has the form of a tenant's, but there is none.
        RegistryStaleError: The worker cannot know whether there is one.
    """
    if has_request_context():
        arguments = request.view_args
    elif has_websocket_context():
        arguments = websocket.view_args
    else:
        return None
    if arguments and TENANT_ARGUMENT in arguments:
        g.tenant = get_extension().registry.get_tenant(Slug(arguments[TENANT_ARGUMENT]))
        # Taken out last: a view is never run without its tenant being known.
        del arguments[TENANT_ARGUMENT]
    return cast("Tenant | None", g.get("tenant"))


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


current_tenant = cast("Tenant", LocalProxy(get_current_tenant))
"""The tenant of the current request or websocket. Using it elsewhere raises `NoTenantError`."""


def tenant_connection(tenant: Tenant | str | None = None) -> "Block":
    """Return a block that lends a connection which sees one tenant's tables and no others.

    `async with tenant_connection() as connection:` begins a transaction. Leaving the block commits
    it; leaving it by an exception or a cancellation rolls it back. No connection is taken before
    the block is entered.

    Args:
        tenant: A tenant, or its slug. Default: the current one. Needed in jobs and scripts, where
            the call stands inside `async with app.app_context()`.

    Raises:
        NoTenantError: No tenant is named and there is no current one. There is no default.
        WrongTenantError: A request at one tenant's host asks for another tenant.
        UnknownTenantError: No tenant has that slug.
        InvalidSlugError: It is no slug.
        RegistryStaleError: The worker cannot know whether the tenant still exists.

    Entering and leaving the block raise what `Database.tenant_connection` says.
    """
    extension = get_extension()
    if tenant is None:
        tenant = get_current_tenant()
    else:
        slug = tenant.slug if isinstance(tenant, Tenant) else parse_slug(tenant)
        # A dropped tenant is refused also to a job that still holds the object.
        known = extension.registry.get_tenant(slug)
        if isinstance(tenant, Tenant) and known.id != tenant.id:
            raise WrongTenantError(f"{slug!r} is another tenant by now")
        current = find_current_tenant()
        if current is not None and current.id != known.id:
            raise WrongTenantError(f"a request of tenant {current.slug!r} asked for tenant {slug!r}")
        tenant = known
    return extension.database.tenant_connection(tenant)

"""Let a stranger make a tenant, at the domain itself, if `TENANTS_SIGN_UP` says so."""

from http import HTTPStatus

from quart import Quart, render_template
from quart.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound

from quart_tenants.app.credentials import get_hasher
from quart_tenants.app.forms import check_new_password, read_fields, show_again
from quart_tenants.app.users import add_user
from quart_tenants.connection import Connection
from quart_tenants.errors import TenantError, TooManyLoginsError
from quart_tenants.tenant import Tenant
from quart_tenants.web.context import find_address
from quart_tenants.web.extension import QuartTenants
from quart_tenants.web.routing.host_routing import APEX_HOST
from quart_tenants.web.sessions.logins import login_attempt

_TEMPLATE = "sign_up.html"

_SLUG_ERRORS = (
    *("invalid_slug", "tenant_exists", "recently_dropped", "tenant_in_trash", "former_slug", "schema_exists"),
    *("invalid_schema_name", "tenant_busy"),
)
# Which fields of the form an error is about, by its code.
_WRONG: dict[str, tuple[str, ...]] = {
    "invalid_name": ("name",),
    "invalid_user": ("uname",),
    "password_too_long": ("passwd",),
    **dict.fromkeys(_SLUG_ERRORS, ("slug",)),
}
_WRONG_PASSWORD: dict[str, tuple[str, ...]] = {"invalid_user": ("passwd", "again")}


def add_sign_up(app: Quart, tenants: QuartTenants) -> None:
    """Let *app* serve /sign-up."""

    def refuse_if_closed() -> None:
        if not tenants.settings.sign_up:
            raise NotFound

    @app.get("/sign-up", host=APEX_HOST)
    async def show_sign_up() -> str:
        refuse_if_closed()
        return await render_template(_TEMPLATE, domain=tenants.settings.domain, sent={})

    @app.post("/sign-up", host=APEX_HOST)
    async def sign_up() -> ResponseReturnValue:
        refuse_if_closed()
        fields = await read_fields("name", "slug", "uname", "passwd", "again")
        # Host names have no case. Python's lower() would make a k of the Kelvin sign.
        slug = fields["slug"].strip()
        slug = slug.lower() if slug.isascii() else slug
        wrong = _WRONG_PASSWORD
        try:
            check_new_password(fields["passwd"], fields["again"])
            wrong = _WRONG
            tenant = await _make_tenant(tenants, slug, fields)
        except TenantError as error:
            if isinstance(error, TooManyLoginsError):
                # Sign-ups are counted as logins are, but nobody has tried to log in here.
                error = TooManyLoginsError(error.retry_after, "sign-ups came from your address")
            sent = {"name": fields["name"], "slug": slug, "uname": fields["uname"]}
            return await show_again(_TEMPLATE, error, wrong, domain=tenants.settings.domain, sent=sent)
        # There is no redirect to the tenant: the policy `form-action 'self'` keeps a form at its own host.
        page = await render_template("signed_up.html", domain=tenants.settings.domain, tenant=tenant)
        return page, HTTPStatus.CREATED


async def _make_tenant(tenants: QuartTenants, slug: str, fields: dict[str, str]) -> Tenant:
    """Make a tenant with its first user.

    Raises:
        InvalidUserError: The user cannot be stored.
        TooManyLoginsError: There were too many attempts from this address.

    This also raises the errors of `QuartTenants.create` and `PasswordHasher.hash`.
    """
    # Not by the name of the user: whoever makes many tenants gives each another one.
    async with login_attempt(f"sign-up from {find_address()}", event="sign_up") as attempt:
        # Before the work, so that it counts whatever comes of it: a name that is taken, a visitor who has left.
        await attempt.count()
        password_hash = await get_hasher().hash(fields["passwd"])

        async def add_first_user(connection: Connection) -> None:
            await add_user(connection, slug, fields["uname"], password_hash)

        return await tenants.create(slug, name=fields["name"], fill=add_first_user)

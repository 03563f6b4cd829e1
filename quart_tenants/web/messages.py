"""Send messages to the pages of one tenant, whichever worker they are connected to."""

import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from quart import Quart

from quart_tenants.argument_checks import check_arguments
from quart_tenants.connection import Connection
from quart_tenants.errors import NotLoggedInError, RegistryStaleError, SessionUncheckedError, UnknownTenantError
from quart_tenants.postgres.messages.message_hub import Subscription, send_message
from quart_tenants.tenant import Tenant
from quart_tenants.web.context import get_current_tenant
from quart_tenants.web.sessions.tenant_sessions import find_session
from quart_tenants.web.state import get_state


def name_channel(app: Quart) -> str:
    """Return the channel of *app* in PostgreSQL. Its name is a secret.

    A role that may run SQL may send to every channel whose name it knows. So SQL that is injected into one tenant's
    statement cannot write to another tenant's pages.
    """
    key = app.secret_key or ""
    digest = hmac.new(key if isinstance(key, bytes) else key.encode(), b"quart_tenants messages", hashlib.sha256)
    return f"quart_tenants_{digest.hexdigest()[:32]}"


@check_arguments
async def publish(
    message: Any, *, topic: str = "", tenant: Tenant | None = None, connection: Connection | None = None
) -> None:
    """Send *message* to all who have subscribed to *topic* at one tenant, on every worker.

    With *connection* the message is sent when its block is saved, and not at all if the block is rolled back. Without,
    it is sent at once. Nobody keeps it: who subscribes later does not get it.

    Args:
        message: What JSON has: with the topic at most 7,999 bytes. For more send an id, and let the page read the rest.
        topic: A name within the tenant.
        tenant: Default: the current one.
        connection: Of a block of the tenant.

    Raises:
        MessageTooLongError: It is longer than that.
        TypeError: It is no JSON.
        NoTenantError: No tenant is named and there is no current one.
        DatabaseUnavailableError: The database cannot be reached.

    Example:
        ```python
        async with tenant_connection() as connection:
            number = await connection.fetchval("INSERT INTO notes (text) VALUES ($1) RETURNING id", "new")
            await publish({"added": number}, connection=connection)
        ```
    """
    state = get_state()
    tenant_id = (tenant or get_current_tenant()).id
    block = state.database.connection() if connection is None else nullcontext(connection)
    async with block as lent:
        await send_message(lent, state.messages.channel, tenant_id, topic, message)


@check_arguments
@asynccontextmanager
async def subscribe(topic: str = "", *, tenant: Tenant | None = None) -> AsyncIterator[Subscription]:
    """Get what is published to *topic* at one tenant, from the moment on at which the block begins.

    A step of the iteration raises `MessagesLostError` where messages may be missing: the connection broke, or this
    subscriber had not taken the last 1,000. Read again what the page shows, and go on with the iteration.

    Whoever may not read any more is told by a step of the iteration, before the next message and after ten seconds at
    the latest: it raises `NotLoggedInError` where the session that the view has used is over, and `UnknownTenantError`
    where the tenant is suspended or gone. Let the error leave the view, and the websocket is closed by the code 1008.

    Args:
        topic: A name within the tenant.
        tenant: Default: the current one.

    Raises:
        NoTenantError: No tenant is named and there is no current one.
        SettingError: The URL in `TENANTS_DIRECT_DATABASE_URL` cannot be understood.
        DatabaseUnavailableError: The database cannot be reached.
        DatabaseRefusedError: A pooler stands between; `TENANTS_DIRECT_DATABASE_URL` goes around it.

    Example:
        ```python
        @app.websocket("/live", host=tenants.host)
        async def live() -> None:
            async with subscribe() as messages:
                async for message in messages:
                    await websocket.send_json(message)
        ```
    """
    hub, registry = get_state().messages, get_state().registry
    about = tenant or get_current_tenant()
    session = find_session()
    had_user = session is not None and session.loaded and session.user is not None

    def may_read() -> bool:
        try:
            if registry.get_present(about).id != about.id:
                raise UnknownTenantError(about.slug)
            if session is not None and had_user and session.user is None:
                raise NotLoggedInError
        except (RegistryStaleError, SessionUncheckedError):
            # This worker has had no news for too long. The messages wait until it has some.
            return False
        return True

    subscription = await hub.subscribe(about.id, topic, may_read)
    try:
        yield subscription
    finally:
        hub.unsubscribe(about.id, topic, subscription)

"""Let a visitor try to log in, unless too many tries have failed lately."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from quart import current_app

from quart_tenants.audit import audit
from quart_tenants.errors import InvalidCredentialsError, TenantError, TooManyLoginsError
from quart_tenants.postgres.sessions.failed_logins import LoginCount, count_failure, count_success, look_at_login
from quart_tenants.tenant import Tenant
from quart_tenants.web.context import find_address, find_current_tenant
from quart_tenants.web.sessions.tenant_sessions import TenantSession, start_session
from quart_tenants.web.state import get_state

# Logins at the domain itself are counted under it.
_NO_TENANT = 0


class LoginAttempt:
    """One attempt to log in. `login_attempt` makes it.

    Attributes:
        user: The user whom the log names if the attempt fails. Set it when there is such a user. Until then it is
            None, because a name that belongs to no user may be a password in the wrong field.
        succeeded: Whether the password was right, or the attempt is counted already.

    Example:
        ```python
        async with login_attempt("ada") as attempt:
            attempt.user = "ada"  # There is such a user, so the log may say the name.
            if not await is_password_right("ada"):
                raise InvalidCredentialsError
            await attempt.succeed("7")
        ```
    """

    def __init__(self, count: LoginCount, event: str, tenant: Tenant | None = None) -> None:
        self._count = count
        self._tenant = tenant
        self._event = event
        self.user: str | None = None
        self.succeeded = False

    async def succeed(self, user: str) -> TenantSession:
        """Forget the failures before this, and begin a new session for *user*; return it, empty.

        Args:
            user: The text by which `end_user_sessions` finds the user. It must not change while the user exists.

        Raises:
            TypeError: *user* is no text, such as a number.
            SettingError: The app has no secret key.
            DatabaseUnavailableError: The database is lost. Nobody is logged in.
        """
        await self.forgive()
        session = await start_session(user, generation=self._count.generation)
        audit(f"{self._event}_succeeded", user=user, address=find_address())
        return session

    async def forgive(self) -> None:
        """Forget the failures before this. For a visitor who has given the right password, and needs no new session."""
        state = get_state()
        async with state.login_gates.connections, state.database.connection() as connection:
            await count_success(connection, self._count)
        self.succeeded = True
        state.measures.logins_succeeded += 1

    async def count(self) -> None:
        """Count this attempt like a failure, whatever comes of it. For what costs much, such as a sign-up.

        Raises:
            DatabaseUnavailableError: The database is lost.
        """
        await asyncio.shield(get_state().login_gates.keep(self._write_failure()))
        self.succeeded = True

    def fail(self) -> "asyncio.Task[None]":
        """Begin to count the failure. The counting goes on when the visitor goes away."""
        audit(f"{self._event}_failed", user=self.user, address=find_address())
        measures = get_state().measures
        measures.logins_failed += 1
        if self._tenant is not None:
            measures.tenants.get(self._tenant).failed_logins += 1
        return get_state().login_gates.keep(self._write_failure())

    async def _write_failure(self) -> None:
        state = get_state()
        async with state.login_gates.connections, state.database.connection() as connection:
            await count_failure(connection, self._count, state.settings)


@asynccontextmanager
async def login_attempt(account: str, *, event: str = "login") -> AsyncIterator[LoginAttempt]:
    """Let a visitor try to log in as *account* at the current tenant, or at the domain itself, and note how it ended.

    The audit has `login_succeeded`, `login_failed` and `login_throttled`.

    Leaving the block without `succeed` is a failure, and counts for the account and for the visitor's address:
    from the fifth on (`TENANTS_LOGIN_ATTEMPTS`) the next attempt has to wait, each time twice as long. A cancellation
    is a failure, too: a visitor who leaves before the answer has already had the password checked. Errors of this
    library other than `InvalidCredentialsError` are no failures: they do not say whether the password is right.

    Args:
        account: The name that the visitor gave, whether or not such a user exists.
        event: What else the password is asked for, as the audit calls it.

    Raises:
        TooManyLoginsError: It is too early for another attempt.
        NoTenantError: There is no current app.
        DatabaseUnavailableError: The database cannot be asked.

    Example:
        ```python
        async with login_attempt("ada") as attempt:
            if not await is_password_right("ada"):
                raise InvalidCredentialsError
            await attempt.succeed("7")
        ```
    """
    tenant = find_current_tenant()
    tenant_id = _NO_TENANT if tenant is None else tenant.id
    state = get_state()
    async with state.login_gates.pass_through(tenant_id, account):
        async with state.login_gates.connections, state.database.connection() as connection:
            key = current_app.secret_key or ""
            try:
                count = await look_at_login(connection, tenant_id, account, find_address(), key)
            except TooManyLoginsError as error:
                audit(f"{event}_throttled", address=find_address(), retry_after=error.retry_after)
                state.measures.logins_throttled += 1
                raise
        # From here on any end of all the user's sessions, such as for a new password, ends the one that begins here.
        attempt = LoginAttempt(count, event, tenant)
        try:
            yield attempt
        except asyncio.CancelledError:
            if not attempt.succeeded:
                attempt.fail()
            raise
        except BaseException as error:
            if not attempt.succeeded and _tells_of_password(error):
                await asyncio.shield(attempt.fail())
            raise
        if not attempt.succeeded:
            await asyncio.shield(attempt.fail())


def _tells_of_password(error: BaseException) -> bool:
    return isinstance(error, InvalidCredentialsError) or not isinstance(error, TenantError)

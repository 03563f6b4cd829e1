"""Let a visitor try to log in, unless too many tries have failed lately."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from quart import current_app

from quart_tenants.audit import audit
from quart_tenants.errors import InvalidCredentialsError, TenantError, TooManyLoginsError
from quart_tenants.postgres.sessions.failed_logins import LoginCount, count_failure, count_success, look_at_login
from quart_tenants.web.context import find_address, get_current_tenant
from quart_tenants.web.sessions.tenant_sessions import TenantSession, start_session
from quart_tenants.web.state import get_state


class LoginAttempt:
    """One try to log in. Made by `login_attempt`.

    Attributes:
        user: Who is named in the log if it fails. Set it when there is such a user; until then it is None, because
            a name that is no user's may be a password in the wrong field.
        succeeded: Whether the password was right.
    """

    def __init__(self, count: LoginCount, event: str) -> None:
        self._count = count
        self._event = event
        self.user: str | None = None
        self.succeeded = False

    async def succeed(self, user: str) -> TenantSession:
        """Forgive what failed before, and begin a new session for *user*; return it, empty.

        Args:
            user: Whom `end_user_sessions` will name: text that stays the same while the user exists.

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
        """Forgive what failed before, for who has shown the right password for something else than a session."""
        state = get_state()
        async with state.login_gates.connections, state.database.connection() as connection:
            await count_success(connection, self._count)
        self.succeeded = True

    def fail(self) -> "asyncio.Task[None]":
        """Begin to count the failure. That goes on when the visitor goes away, who must not be spared by that."""
        state = get_state()
        audit(f"{self._event}_failed", user=self.user, address=find_address())

        async def count() -> None:
            async with state.login_gates.connections, state.database.connection() as connection:
                await count_failure(connection, self._count, state.settings)

        return state.login_gates.keep(count())


@asynccontextmanager
async def login_attempt(account: str, *, event: str = "login") -> AsyncIterator[LoginAttempt]:
    """Let somebody try to log in as *account* at the current tenant, and write down what came of it.

    ```python
    async with login_attempt(name) as attempt:
        user = await find_user_by_password(name, password)
        if user is None:
            raise InvalidCredentialsError
        await attempt.succeed(str(user.id))
    ```

    The audit has `login_succeeded`, `login_failed` and `login_throttled`.

    Leaving the block without `succeed` is a failure, and counts for the account and for the visitor's address:
    from the fifth on (`TENANTS_LOGIN_ATTEMPTS`) the next try has to wait, each time twice as long. So is a
    cancellation: who goes away before the answer has had the work done. Errors of this library other than
    `InvalidCredentialsError` are no failures: then nobody was told whether the password is right.

    Args:
        account: The name that the visitor gave, whether or not such a user exists.
        event: What else the password is asked for, as the audit calls it.

    Raises:
        TooManyLoginsError: It is too early for another try.
        NoTenantError: This is no request at a tenant's host.
        DatabaseUnavailableError: The database cannot be asked.
    """
    tenant = get_current_tenant()
    state = get_state()
    async with state.login_gates.pass_through(tenant.id, account):
        async with state.login_gates.connections, state.database.connection() as connection:
            key = current_app.secret_key or ""
            try:
                count = await look_at_login(connection, tenant.id, account, find_address(), key)
            except TooManyLoginsError as error:
                audit(f"{event}_throttled", address=find_address(), retry_after=error.retry_after)
                raise
        # From here on any end of all the user's sessions, such as for a new password, ends the one that begins here.
        attempt = LoginAttempt(count, event)
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

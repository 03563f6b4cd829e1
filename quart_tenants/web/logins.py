"""Let a visitor try to log in, unless too many tries have failed lately."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from quart import current_app

from quart_tenants.audit import audit
from quart_tenants.errors import InvalidCredentialsError, TenantError, TooManyLoginsError
from quart_tenants.postgres.logins import LoginCount, count_failure, count_success, look_at_login
from quart_tenants.web.context import find_address, get_current_tenant, get_extension
from quart_tenants.web.sessions import TenantSession, start_session

logger = logging.getLogger(__name__)

_CONNECTIONS = 2
"""Of a worker's pool, that logins may have at a time for counting."""


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
        extension = get_extension()
        async with extension.login_gates.connections, extension.database.connection() as connection:
            await count_success(connection, self._count)
        self.succeeded = True

    def fail(self) -> "asyncio.Task[None]":
        """Begin to count the failure. That goes on when the visitor goes away, who must not be spared by that."""
        extension = get_extension()
        audit(f"{self._event}_failed", user=self.user, address=find_address())

        async def count() -> None:
            async with extension.login_gates.connections, extension.database.connection() as connection:
                await count_failure(connection, self._count, extension.settings)

        return extension.login_gates.keep(count())


class LoginGates:
    """In one worker, lets a few tries for one account run at a time, so that a burst is counted, too.

    What fails is counted when it has failed. Without a gate a thousand tries at once would all look before that.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._gates: dict[tuple[int, str], tuple[asyncio.Semaphore, int]] = {}
        self._counting: set[asyncio.Task[None]] = set()
        # Logins come in storms, such as at nine in the morning, and are slow anyway: they must not stand in front of
        # everybody else in the queue for a connection.
        self.connections = asyncio.Semaphore(_CONNECTIONS)

    @asynccontextmanager
    async def pass_through(self, tenant_id: int, account: str) -> AsyncIterator[None]:
        """Wait until a try for this account may run, and let it."""
        key = tenant_id, account
        gate, inside = self._gates.get(key) or (asyncio.Semaphore(self._width), 0)
        self._gates[key] = gate, inside + 1
        try:
            async with gate:
                yield
        finally:
            gate, inside = self._gates.pop(key)
            if inside > 1:
                self._gates[key] = gate, inside - 1

    def keep(self, count: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run *count*, whether or not anybody waits for it."""
        task = asyncio.create_task(count)
        # The event loop itself keeps no task alive.
        self._counting.add(task)
        task.add_done_callback(self._drop)
        return task

    def _drop(self, task: "asyncio.Task[None]") -> None:
        self._counting.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.warning("a failed login was not counted: %s", task.exception())


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
    extension = get_extension()
    async with extension.login_gates.pass_through(tenant.id, account):
        async with extension.login_gates.connections, extension.database.connection() as connection:
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

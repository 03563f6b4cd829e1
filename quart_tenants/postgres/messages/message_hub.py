"""Listen for messages on one connection, and hand each to the subscribers of its tenant."""

import asyncio
import contextlib
import json
import logging
import secrets
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quart_tenants.connection import Connection
from quart_tenants.errors import (
    DatabaseRefusedError,
    DatabaseUnavailableError,
    MessagesLostError,
    MessageTooLongError,
    TenantError,
)
from quart_tenants.postgres.blocks.database import DEFAULTS
from quart_tenants.postgres.blocks.own_sessions import open_own_session
from quart_tenants.postgres.driver.connection_types import DRIVER_ERRORS, describe
from quart_tenants.settings import Settings

if TYPE_CHECKING:
    import asyncpg

logger = logging.getLogger(__name__)

LONGEST_PAYLOAD = 7999
"""Bytes: PostgreSQL takes less than 8000 (manual, NOTIFY)."""

_NOTIFY = "SELECT pg_catalog.pg_notify($1, $2)"
_LONGEST_QUEUE = 1000  # messages that a slow subscriber has not taken yet
_HELLO = "hello "
_PATIENCE = 5.0  # seconds, until our own message comes back
_FIRST_PAUSE = 0.1  # seconds between two tries to connect; it doubles each time
_LONGEST_PAUSE = 5.0
_CHECK_SECONDS = 5.0  # until it is asked again whether a subscriber that waits may read


async def send_message(connection: Connection, channel: str, tenant_id: int, topic: str, message: Any) -> None:
    """Send *message* to the subscribers of one tenant's *topic*, when the transaction of *connection* commits.

    Raises:
        MessageTooLongError: As JSON, with the topic, it has more than PostgreSQL takes.
        TypeError: It is no JSON.
    """
    payload = json.dumps([tenant_id, topic, message], ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    if len(payload.encode()) > LONGEST_PAYLOAD:
        raise MessageTooLongError(LONGEST_PAYLOAD)
    await connection.execute(_NOTIFY, channel, payload)


class Subscription:
    """The messages of one topic of one tenant, in the order in which they were sent. An async iterator.

    `MessagesLostError` says that some messages may be missing; the next step of the iteration goes on after them.

    Args:
        may_read: Returns whether the subscriber may get a message now, and raises an error when it is to get no more.
            It is asked before each message, and every five seconds while there is none.
    """

    def __init__(self, may_read: Callable[[], bool]) -> None:
        self._may_read = may_read
        self._messages: deque[Any] = deque()
        self._lost = False
        self._came = asyncio.Event()

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Any:
        """Return the next message.

        Raises:
            MessagesLostError: The connection broke, or more messages came than were taken. Some may be missing.

        This also raises what `may_read` raises.
        """
        while not self._may_read() or not (self._messages or self._lost):
            self._came.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_SECONDS):
                    await self._came.wait()
        if self._lost:
            self._lost = False
            raise MessagesLostError("messages may be missing here: read again what they are about")
        return self._messages.popleft()

    def put(self, message: Any) -> None:
        """Hand over a message. If the subscriber is slow, all that wait are lost."""
        if len(self._messages) >= _LONGEST_QUEUE:
            self.lose()
        self._messages.append(message)
        self._came.set()

    def lose(self) -> None:
        """Forget what waits, and say so."""
        self._messages.clear()
        self._lost = True
        self._came.set()


class MessageHub:
    """The one connection of a worker that listens, and the subscribers of all tenants."""

    def __init__(self, settings: Settings, channel: str) -> None:
        self.channel = channel
        self._settings = settings
        self._subscriptions: dict[tuple[int, str], set[Subscription]] = {}
        self._listening: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None

    async def subscribe(self, tenant_id: int, topic: str, may_read: Callable[[], bool]) -> Subscription:
        """Return a new subscription. What is sent from now on reaches it. The first one connects.

        *may_read* is that of `Subscription`.

        Raises:
            SettingError: The URL to listen at cannot be understood, or leads elsewhere.
            DatabaseUnavailableError: The database cannot be reached.
            DatabaseRefusedError: A pooler stands between, or what is sent does not come back.
        """
        if self._listening is None or self._listening.done():
            self._ready = asyncio.get_running_loop().create_future()
            self._listening = asyncio.create_task(self._listen(), name="quart_tenants messages")
        subscription = Subscription(may_read)
        self._subscriptions.setdefault((tenant_id, topic), set()).add(subscription)
        try:
            if self._ready is not None:
                await asyncio.shield(self._ready)
        except BaseException:
            self.unsubscribe(tenant_id, topic, subscription)
            raise
        return subscription

    def unsubscribe(self, tenant_id: int, topic: str, subscription: Subscription) -> None:
        """End a subscription."""
        waiting = self._subscriptions.get((tenant_id, topic))
        if waiting is not None:
            waiting.discard(subscription)
            if not waiting:
                del self._subscriptions[tenant_id, topic]

    async def close(self) -> None:
        """Stop listening."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])

    async def _listen(self) -> None:
        """Keep one connection that listens, and open another one when it breaks."""
        pause = _FIRST_PAUSE
        while True:
            try:
                connection, closed = await self._connect()
            except Exception as error:
                # No error may end this task before the first subscriber is told: it would wait for ever.
                if self._ready is not None and not self._ready.done():
                    # The first subscriber is told, and the next one tries again.
                    self._ready.set_exception(error)
                    return
                logger.warning(
                    "messages of other workers cannot be heard, which is tried again: %s",
                    error,
                    exc_info=None if isinstance(error, TenantError) else error,
                )
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause = _FIRST_PAUSE
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(None)
            else:
                for waiting in self._subscriptions.values():
                    for subscription in waiting:
                        subscription.lose()
            try:
                await closed.wait()
            finally:
                connection.terminate()

    async def _connect(self) -> "tuple[asyncpg.Connection[asyncpg.Record], asyncio.Event]":
        closed, heard = asyncio.Event(), asyncio.Event()
        hello = _HELLO + secrets.token_hex(8)

        def hear(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            if payload == hello:
                heard.set()
            else:
                self._hand_over(str(payload))

        settings = self._settings
        defaults = DEFAULTS | {"application_name": "quart_tenants messages"}
        connection = await open_own_session(settings, defaults, "messages", settings.command_timeout)
        try:
            connection.add_termination_listener(lambda _: closed.set())
            await connection.add_listener(self.channel, hear)
            await connection.execute(_NOTIFY, self.channel, hello)
            async with asyncio.timeout(_PATIENCE):
                await heard.wait()
        except BaseException as error:
            connection.terminate()
            if isinstance(error, TimeoutError):
                raise DatabaseRefusedError(
                    "a message to ourselves did not come back: a pooler stands between, which forgets LISTEN; give the "
                    "URL of PostgreSQL itself in TENANTS_DIRECT_DATABASE_URL"
                ) from error
            if isinstance(error, DRIVER_ERRORS):
                raise DatabaseUnavailableError(f"cannot listen for messages: {describe(error)}") from error
            raise
        return connection, closed

    def _hand_over(self, payload: str) -> None:
        try:
            tenant_id, topic, message = json.loads(payload)
            waiting = self._subscriptions.get((tenant_id, topic), ())
        except (ValueError, TypeError):
            # Of another program, or the hello of another worker.
            return
        for subscription in waiting:
            # Each gets an object of its own, which it may change.
            subscription.put(message if isinstance(message, str | int | float | None) else json.loads(payload)[2])

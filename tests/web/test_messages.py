"""Messages: to the pages of one tenant, on every worker, and never to another tenant's."""

import asyncio
import functools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import asyncpg
import pytest
from quart import Quart, ResponseReturnValue, websocket
from quart.testing.connections import WebsocketDisconnectError

from quart_tenants import (
    PoolExhaustedError,
    QuartTenants,
    Tenant,
    current_tenant,
    end_session,
    end_user_sessions,
    login_required,
    publish,
    subscribe,
    tenant_connection,
)
from quart_tenants.admin import create_tenants, drop_tenant, parse_slug, suspend_tenant
from quart_tenants.errors import (
    DatabaseRefusedError,
    DatabaseUnavailableError,
    LeakError,
    MessagesLostError,
    MessageTooLongError,
    SettingError,
)
from quart_tenants.postgres.messages.message_hub import Subscription
from quart_tenants.testing import TenantClient
from quart_tenants.testing.clients import ClientMaker
from tests.support.databases import REFERENCE_FILES
from tests.support.patience import DEADLINE, wait_until

pytestmark = pytest.mark.slow

HOST = {"Host": "acme.localhost"}
KILL_LISTENERS = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name = 'quart_tenants messages' AND datname = current_database()
"""


class Worker(NamedTuple):
    """An app that serves, its extension, and the codes and reasons by which it has closed websockets."""

    app: Quart
    tenants: QuartTenants
    closes: list[tuple[int, str]]


def make_worker(database_url: str, **config: object) -> Worker:
    """Return an app whose pages send and show messages."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.secret_key = "a key of a decent length"
    app.config.update(TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url, **config)
    tenants = QuartTenants(app)

    @app.post("/say/<text>", host=tenants.host)
    async def say(text: str) -> ResponseReturnValue:
        await publish({"text": text, "from": current_tenant.slug})
        return {}

    @app.websocket("/live", host=tenants.host)
    async def live() -> None:
        async with subscribe() as messages:
            await websocket.send("ready")
            async for message in messages:
                await websocket.send_json(message)

    @app.websocket("/mine", host=tenants.host)
    @login_required
    async def mine() -> None:
        await live()

    @app.post("/sign-out", host=tenants.host)
    async def sign_out() -> ResponseReturnValue:
        await end_session()
        return {}

    @app.websocket("/<any(busy, bug, done):how>", host=tenants.host)
    async def end(how: str) -> None:
        await websocket.send("ready")
        if how != "done":
            raise PoolExhaustedError if how == "busy" else LeakError

    closes: list[tuple[int, str]] = []
    served = app.asgi_app

    async def note_closes(scope: Any, receive: Any, send: Any) -> None:
        async def noting(event: Any) -> None:
            if event["type"] == "websocket.close":
                closes.append((event["code"], event.get("reason", "")))
            await send(event)

        await served(scope, receive, noting)

    app.asgi_app = note_closes  # type: ignore[method-assign]
    return Worker(app, tenants, closes)


@pytest.fixture
async def workers(database_url: str) -> AsyncIterator[tuple[Worker, Worker]]:
    """Two workers."""
    pair = make_worker(database_url), make_worker(database_url)
    async with pair[0].app.test_app(), pair[1].app.test_app():
        yield pair


def get(worker: Worker, slug: str) -> Tenant:
    """Return a tenant as the worker knows it."""
    return worker.tenants.registry.get_tenant(parse_slug(slug))


async def take(messages: Subscription, count: int) -> list[object]:
    """Return the next messages."""
    async with asyncio.timeout(60):
        return [await anext(messages) for _ in range(count)]


async def test_message_reaches_the_pages_of_its_tenant(workers: tuple[Worker, Worker]) -> None:
    """On the same worker and on another, and not those of another tenant."""
    here, there = workers
    async with (
        here.app.test_client().websocket("/live", headers=HOST) as one,
        there.app.test_client().websocket("/live", headers=HOST) as two,
        there.app.test_client().websocket("/live", headers={"Host": "globex.localhost"}) as other,
    ):
        for page in (one, two, other):
            assert await page.receive() == "ready"
        await here.app.test_client().post("/say/hello", headers=HOST)
        await here.app.test_client().post("/say/later", headers={"Host": "globex.localhost"})

        expected = {"text": "hello", "from": "acme"}
        assert (await one.receive_json(), await two.receive_json()) == (expected, expected)
        assert await other.receive_json() == {"text": "later", "from": "globex"}


async def test_topics_are_apart(workers: tuple[Worker, Worker]) -> None:
    """A subscriber gets its topic only, in the order in which it was sent."""
    here, _ = workers
    acme = get(here, "acme")
    async with here.app.app_context(), subscribe("notes", tenant=acme) as notes, subscribe(tenant=acme) as rest:
        for number in range(3):
            await publish(number, topic="notes", tenant=acme)
        await publish(None, tenant=acme)

        assert await take(notes, 3) == [0, 1, 2]
        assert await take(rest, 1) == [None]


async def test_message_goes_with_its_transaction(workers: tuple[Worker, Worker]) -> None:
    """A block that is rolled back sends nothing."""
    here, _ = workers
    acme = get(here, "acme")
    async with here.app.app_context(), subscribe(tenant=acme) as messages:
        with pytest.raises(LookupError):
            async with tenant_connection(acme) as connection:
                await publish("lost", tenant=acme, connection=connection)
                raise LookupError
        async with tenant_connection(acme) as connection:
            await publish("saved", tenant=acme, connection=connection)

        assert await take(messages, 1) == ["saved"]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("x" * 9000, MessageTooLongError),
        ("ä" * 4000, MessageTooLongError),
        (object(), TypeError),
        (float("nan"), ValueError),
    ],
)
async def test_message_that_cannot_be_sent_is_refused(
    workers: tuple[Worker, Worker], message: object, error: type[Exception]
) -> None:
    """9,000 bytes are more than PostgreSQL takes. The next message goes out."""
    here, _ = workers
    acme = get(here, "acme")
    async with here.app.app_context(), subscribe(tenant=acme) as messages:
        with pytest.raises(error):
            await publish(message, tenant=acme)
        await publish("y" * 7900, tenant=acme)

        assert await take(messages, 1) == ["y" * 7900]


async def test_slow_subscriber_is_told_and_holds_up_nobody(workers: tuple[Worker, Worker]) -> None:
    """What it has not taken is dropped, it is told once, and the newest messages come."""
    here, _ = workers
    acme = get(here, "acme")
    async with here.app.app_context(), subscribe(tenant=acme) as slow, subscribe(tenant=acme) as quick:
        for number in range(1500):
            await publish(number, tenant=acme)
            assert await take(quick, 1) == [number]
        with pytest.raises(MessagesLostError):
            await anext(slow)

        assert await take(slow, 500) == list(range(1000, 1500))


async def test_subscriber_is_told_that_the_connection_broke(
    workers: tuple[Worker, Worker], caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on with what comes after that, by another connection."""
    here, _ = workers
    acme = get(here, "acme")
    async with here.app.app_context(), subscribe(tenant=acme) as messages:
        await publish("before", tenant=acme)
        assert await take(messages, 1) == ["before"]
        async with here.tenants.database.connection() as connection:
            assert await connection.fetchval(KILL_LISTENERS) == 1
        with pytest.raises(MessagesLostError):
            await take(messages, 1)
        await publish("after", tenant=acme)

        assert await take(messages, 1) == ["after"]


async def test_first_subscriber_is_told_that_nobody_can_listen(database_url: str) -> None:
    """Such as for a wrong URL. The next one tries again."""
    worker = make_worker(database_url, TENANTS_DIRECT_DATABASE_URL="postgresql://nobody:x@127.0.0.1:1/x")
    async with worker.app.test_app(), worker.app.app_context():
        for _ in range(2):
            with pytest.raises(DatabaseUnavailableError, match="cannot connect to the database for messages"):
                async with subscribe(tenant=get(worker, "acme")):
                    pass


async def test_direct_url_with_a_wrong_port_is_one_clear_error(database_url: str) -> None:
    """The driver finds that out only when it connects. The subscriber must not wait for ever, nor read the password."""
    worker = make_worker(database_url, TENANTS_DIRECT_DATABASE_URL="postgresql://nobody:sesame@127.0.0.1:port/x")
    async with worker.app.test_app(), worker.app.app_context(), asyncio.timeout(10):
        for _ in range(2):
            with pytest.raises(SettingError, match="TENANTS_DIRECT_DATABASE_URL cannot be understood") as caught:
                async with subscribe(tenant=get(worker, "acme")):
                    pass
            assert "sesame" not in str(caught.value)


async def test_pooler_that_forgets_listen_is_named(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own message does not come back then."""
    monkeypatch.setattr("quart_tenants.postgres.messages.message_hub._PATIENCE", 0.05)
    monkeypatch.setattr(asyncpg.Connection, "add_listener", do_nothing)
    worker = make_worker(database_url)
    async with worker.app.test_app(), worker.app.app_context():
        with pytest.raises(DatabaseRefusedError, match="TENANTS_DIRECT_DATABASE_URL"):
            async with subscribe(tenant=get(worker, "acme")):
                pass


async def do_nothing(*_: object) -> None:
    """Listen to nothing."""


async def test_strange_notifications_are_ignored(workers: tuple[Worker, Worker]) -> None:
    """Other programs may use the channel, and say anything."""
    here, _ = workers
    acme = get(here, "acme")
    async with here.app.app_context(), subscribe(tenant=acme) as messages:
        async with here.tenants.database.connection() as connection:
            for payload in ("", "x", "{}", "[1]", '["acme","",1]', "[[1],2,3]", "null", "[1,2,3,4]"):
                await connection.execute("SELECT pg_notify($1, $2)", here.tenants.messages.channel, payload)
        await publish("good", tenant=acme)

        assert await take(messages, 1) == ["good"]


async def test_no_message_reaches_another_tenant(workers: tuple[Worker, Worker]) -> None:
    """Two workers, 50 tenants, 10,000 messages, listeners killed meanwhile: what is missing was said to be."""
    here, there = workers
    slugs = {parse_slug(f"t{number}"): f"t{number}" for number in range(50)}
    await create_tenants(here.tenants.database, slugs, settings=here.tenants.settings)
    for worker in workers:
        await worker.tenants.registry.refresh()
    got: Counter[str] = Counter()
    told: Counter[str] = Counter()
    foreign: list[object] = []

    async def read(slug: str, messages: Subscription) -> None:
        while True:
            try:
                async for message in messages:
                    if message == "end":
                        return
                    got[slug] += 1
                    if message["for"] != slug:
                        foreign.append(message)
            except MessagesLostError:
                told[slug] += 1

    async with AsyncExitStack() as stack:
        readers = []
        for worker in workers:
            async with worker.app.app_context():
                for slug in slugs:
                    messages = await stack.enter_async_context(subscribe(tenant=get(worker, slug)))
                    readers.append(asyncio.create_task(read(slug, messages)))

        async def send(count: int) -> None:
            for number in range(count):
                slug = list(slugs)[number * 7 % len(slugs)]
                await publish({"for": slug}, tenant=get(here, slug))

        async with here.app.app_context():
            for _ in range(5):
                await asyncio.gather(*(send(400) for _ in range(5)))
                heard = told.total()
                async with there.tenants.database.connection() as connection:
                    await connection.fetchval(KILL_LISTENERS)
                # Everybody is told before the next messages are sent.
                await wait_until(functools.partial(all_told, told, heard + len(readers)))
            for slug in slugs:
                await publish("end", tenant=get(here, slug))
            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*readers)

    assert foreign == []
    assert got.total() > 10_000
    assert told == dict.fromkeys(slugs, 10)


async def all_told(told: Counter[str], count: int) -> bool:
    """Return whether so many subscribers were told that messages may be missing."""
    return told.total() >= count


# Who may read no more

SOONER = "quart_tenants.postgres.messages.message_hub._CHECK_SECONDS"
Ending = Callable[[Worker, TenantClient], Awaitable[object]]


async def end_at_another_place(worker: Worker, ada: TenantClient) -> object:
    """Sign out in another window, which has the same cookie."""
    return await ada.post("/sign-out")


async def end_all_of_the_user(worker: Worker, ada: TenantClient) -> object:
    """Do what a new password does."""
    return await end_user_sessions(worker.tenants.database, ada.tenant, "ada")


async def suspend(worker: Worker, ada: TenantClient) -> object:
    """Suspend the tenant."""
    return await suspend_tenant(worker.tenants.database, ada.tenant.slug)


async def drop(worker: Worker, ada: TenantClient) -> object:
    """Drop the tenant."""
    return await drop_tenant(worker.tenants.database, ada.tenant.slug)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (end_at_another_place, "not_logged_in"),
        (end_all_of_the_user, "not_logged_in"),
        (suspend, "unknown_tenant"),
        (drop, "unknown_tenant"),
    ],
)
async def test_page_that_is_open_is_closed_when_it_may_read_no_more(
    workers: tuple[Worker, Worker], end: Ending, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any message, the websocket is closed by 1008 and a reason. That of another tenant stays open."""
    monkeypatch.setattr(SOONER, 0.01)
    here, _ = workers
    ada = await ClientMaker(here.app, "localhost")(get(here, "acme"), user="ada")
    eve = await ClientMaker(here.app, "localhost")(get(here, "globex"), user="ada")
    async with eve.websocket("/mine") as other, ada.websocket("/mine") as page:
        assert await page.receive() == await other.receive() == "ready"
        await end(here, ada)
        await here.tenants.registry.refresh()

        with pytest.raises(WebsocketDisconnectError) as closed:
            await page.receive()
        await eve.post("/say/still")

        assert (closed.value.args[0], here.closes[-1]) == (1008, (1008, reason))
        assert (await other.receive_json())["text"] == "still"


@asynccontextmanager
async def open_ended_page(worker: Worker, path: str) -> AsyncIterator[Any]:
    """Open a websocket as a user whose sessions are ended then."""
    ada = await ClientMaker(worker.app, "localhost")(get(worker, "acme"), user="ada")
    async with ada.websocket(path) as page:
        assert await page.receive() == "ready"
        await end_all_of_the_user(worker, ada)
        await worker.tenants.registry.refresh()
        yield page


async def test_page_of_an_ended_session_gets_no_message(
    workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session is looked at before each message, and not only from time to time."""
    monkeypatch.setattr(SOONER, 3600)
    here, _ = workers
    async with open_ended_page(here, "/mine") as page:
        await here.app.test_client().post("/say/secret", headers=HOST)

        with pytest.raises(WebsocketDisconnectError, match="1008"):
            await page.receive()


async def test_page_that_uses_no_session_is_not_closed_with_it(workers: tuple[Worker, Worker]) -> None:
    """Negative control: a view that asks for no login goes on when the session of the cookie has ended."""
    here, _ = workers
    async with open_ended_page(here, "/live") as page:
        await here.app.test_client().post("/say/public", headers=HOST)

        assert (await page.receive_json())["text"] == "public"


async def test_page_that_is_left_open_for_hours_ends_with_the_lifetime_of_its_session(
    workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is used, a websocket does not outlive `TENANTS_SESSION_LIFETIME`."""
    monkeypatch.setattr(SOONER, 0.01)
    here, _ = workers
    ada = await ClientMaker(here.app, "localhost")(get(here, "acme"), user="ada")
    began_at, lifetime = time.time(), here.tenants.settings.session_lifetime
    idle = here.tenants.settings.session_idle_lifetime
    async with ada.websocket("/mine") as page:
        assert await page.receive() == "ready"
        # Used again and again before it is idle.
        for used_at in (*range(0, int(lifetime), int(0.9 * idle)), lifetime - 1):
            monkeypatch.setattr(
                "quart_tenants.web.sessions.tenant_sessions.time.time", lambda at=used_at: began_at + at
            )
            await here.app.test_client().post("/say/hello", headers=HOST)
            assert (await page.receive_json())["text"] == "hello"
        monkeypatch.setattr("quart_tenants.web.sessions.tenant_sessions.time.time", lambda: began_at + lifetime + 60)

        with pytest.raises(WebsocketDisconnectError, match="1008"):
            await page.receive()


async def test_messages_wait_while_the_worker_has_no_news(
    workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may perhaps read no more gets nothing meanwhile, and everything when it is known again."""
    monkeypatch.setattr(SOONER, 0.01)
    here, _ = workers
    ada = await ClientMaker(here.app, "localhost")(get(here, "acme"), user="ada")
    registry = here.tenants.registry
    async with ada.websocket("/mine") as page:
        assert await page.receive() == "ready"
        client = here.app.test_client()
        with monkeypatch.context() as outage:
            outage.setattr(type(registry), "get_age", lambda _: here.tenants.settings.session_ask_after + 1)
            async with here.app.app_context():
                await publish({"text": "waits"}, tenant=ada.tenant)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await page.receive()

        await client.post("/say/after", headers=HOST)
        assert [(await page.receive_json())["text"] for _ in range(2)] == ["waits", "after"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/busy", (1013, "pool_exhausted")), ("/bug", (1011, "internal_server_error")), ("/done", (1000, ""))],
)
async def test_websocket_that_an_error_ends_is_closed_by_a_code(
    workers: tuple[Worker, Worker], path: str, expected: tuple[int, str]
) -> None:
    """A client can tell what to try again later from what is a bug, and both from a good end."""
    here, _ = workers
    async with here.app.test_client().websocket(path, headers=HOST) as page:
        assert await page.receive() == "ready"
        with pytest.raises(WebsocketDisconnectError):
            await page.receive()

    assert here.closes == [expected]

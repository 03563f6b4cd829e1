"""What connections do in `serve` that Hypercorn's own do otherwise: how they wait, begin answers, and end."""

import asyncio
import contextlib
import gc
from collections.abc import Callable
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import pytest
from hypercorn.logging import Logger
from hypercorn.protocol.http_stream import HTTPStream

from quart_tenants.server.protocols import connections
from tests.server.protocols.serving import GET, App, answer, end, pause, send, serving, start
from tests.server.protocols.waiting import (
    HEAD,
    POST,
    Waiting,
    answer_plainly,
    ask,
    connected,
    make_app,
    wait_until,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("app", [make_app(), answer_plainly], ids=["pieces", "plain"])
async def test_connection_serves_one_request_after_the_other(app: App) -> None:
    """Head and body are whole each time, also of requests that come at once."""
    async with serving(app) as served, connected(served.port) as (reader, writer):
        answers = [await ask(reader, writer) for _ in range(3)]
        writer.write(GET * 3)
        writer.write(HEAD)
        rest = await reader.read()

    assert all(one.startswith(b"HTTP/1.1 200") and one.endswith(b'\r\n\r\n{"a":1}') for one in answers)
    assert rest.count(b"HTTP/1.1 200") == 4
    assert rest.count(b'{"a":1}') == 3


@pytest.mark.parametrize("app", [make_app(), answer_plainly], ids=["pieces", "plain"])
async def test_answer_says_its_date_and_the_end_of_its_connection(app: App) -> None:
    """As by Hypercorn itself, which closes a connection after `keep_alive_max_requests`."""
    async with serving(app, keep_alive_max_requests=2) as served, connected(served.port) as (reader, writer):
        heads = [await ask(reader, writer) for _ in range(2)]
        rest = await reader.read()

    assert all(head.count(b"\r\ndate: ") == 1 for head in heads)
    assert [b"\r\nconnection: close" in head.lower() for head in heads] == [False, True]
    assert rest == b""


async def test_loggers_of_hypercorn_hear_of_each_request() -> None:
    """Also where there is no access log: that of Hypercorn for StatsD sends its figures without one."""
    heard: list[int] = []

    class Listening(Logger):
        async def access(self, request: Any, response: Any, request_time: float) -> None:
            """Keep the status."""
            heard.append(response["status"])

    async with serving(answer_plainly, logger_class=Listening) as served, connected(served.port) as (reader, writer):
        for _ in range(3):
            await ask(reader, writer)

    assert heard == [200, 200, 200]


async def test_head_does_not_wait_for_a_late_body() -> None:
    """A stream's head is with the client before there is anything to stream."""
    waiting = Waiting()

    async with serving(make_app(waiting.wait)) as served, connected(served.port) as (reader, writer):
        writer.write(GET)
        head = await reader.readuntil(b"\r\n\r\n")
        waiting.released.set()
        body = await reader.readuntil(b"0\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 200")
    assert b'{"a":' in body


async def test_head_of_a_known_length_does_not_wait_for_a_late_body() -> None:
    """Nor does that of an answer that may yet come in one piece."""
    waiting = Waiting()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await start(send, (b"content-length", b"2"))
        await waiting.wait()
        await end(send, b"ok")

    async with serving(app) as served, connected(served.port) as (reader, writer):
        writer.write(GET)
        head = await reader.readuntil(b"\r\n\r\n")
        waiting.released.set()
        body = await reader.readexactly(2)

    assert head.startswith(b"HTTP/1.1 200")
    assert body == b"ok"


@pytest.mark.parametrize("plain", [True, False])
async def test_idle_connection_is_closed(plain: bool) -> None:
    """After `keep_alive_timeout` without a request, and not while one is served, however long that takes."""

    async def think() -> None:
        await asyncio.sleep(0.5)

    async def think_plainly(_scope: Any, _receive: Any, send: Any) -> None:
        await think()
        await answer(send)

    app = think_plainly if plain else make_app(think)
    async with serving(app, keep_alive_timeout=0.2) as served, connected(served.port) as (reader, writer):
        writer.write(GET)
        answered = await reader.read()

    assert answered.endswith(b"\r\n\r\nok" if plain else b"0\r\n\r\n")


class Clock:
    """An event loop's clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        """Return the time."""
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> SimpleNamespace:
        """Call *callback* after so many seconds, unless what is returned is cancelled."""
        call = self.now + seconds, callback
        self.calls.append(call)
        return SimpleNamespace(cancel=lambda: self.calls.remove(call) if call in self.calls else None)

    def go_on(self, seconds: float) -> None:
        """Let so many seconds pass."""
        end = self.now + seconds
        while self.calls and min(self.calls, key=itemgetter(0))[0] <= end:
            call = min(self.calls, key=itemgetter(0))
            self.calls.remove(call)
            self.now = call[0]
            call[1]()
        self.now = end


async def test_connection_is_closed_after_its_last_use_and_not_after_an_earlier_one() -> None:
    """Each request begins the wait anew, and a server that ends shortens it."""
    clock, closed, ends = Clock(), Waiting(), Waiting()
    connection: Any = SimpleNamespace(
        loop=clock,
        config=SimpleNamespace(keep_alive_timeout=10),
        context=SimpleNamespace(terminated=ends.entered),
        close_soon=closed.entered.set,
    )
    timer = connections._IdleTimer(connection)

    for _ in range(5):
        await timer.restart()
        clock.go_on(9)
        assert not closed.entered.is_set()
        timer.note_use()
        clock.go_on(30)
        assert not closed.entered.is_set()
    await timer.restart()
    clock.go_on(9.9)
    assert not closed.entered.is_set()
    clock.go_on(0.2)
    assert closed.entered.is_set()

    closed.entered.clear()
    await timer.restart()
    ends.entered.set()
    await timer.restart()
    clock.go_on(connections.LAST_REQUEST_ARRIVES_WITHIN)
    assert closed.entered.is_set()

    closed.entered.clear()
    await timer.restart()
    await timer.stop()
    assert clock.calls == []


@pytest.mark.parametrize("plain", [True, False])
async def test_idle_connections_end_with_the_server(monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    """A server that is told to end waits for what it serves, and not for who says nothing."""
    # A client that has just connected may yet say something, for so long.
    monkeypatch.setattr(connections, "REQUEST_ARRIVES_WITHIN", 2.0)
    waiting = Waiting()
    app = waiting.app if plain else make_app(waiting.wait)

    async with (
        serving(app, keep_alive_timeout=600) as served,
        connected(served.port) as (idle, _),
        connected(served.port) as (busy, writer),
    ):
        writer.write(GET)
        await waiting.entered.wait()
        served.end.set()
        told = await idle.read()
        waiting.released.set()
        answered = await busy.read()

    assert told == b""
    assert answered.endswith(b"\r\n\r\nok" if plain else b"0\r\n\r\n")


async def test_server_that_ends_answers_nothing_that_waits() -> None:
    """What is being served is answered; what the same client has sent meanwhile is not begun."""
    waiting = Waiting()

    async with serving(waiting.app, keep_alive_timeout=600) as served, connected(served.port) as (reader, writer):
        writer.write(GET)
        await waiting.entered.wait()
        writer.write(GET)
        await pause()
        served.end.set()
        await pause()
        waiting.released.set()
        answered = await reader.read()

    assert answered.count(b"HTTP/1.1 200") == 1
    assert waiting.ended == ["answered"]


@pytest.mark.parametrize("first", [GET, POST], ids=["plain", "POST"])
@pytest.mark.parametrize("more", [b"", GET, GET[:9]], ids=["nothing", "another request", "half of one"])
async def test_aborted_connection_cancels_its_handler(first: bytes, more: bytes) -> None:
    """So a server whose patience is over ends what is being served, whatever else the client has sent."""
    waiting = Waiting()

    async with serving(waiting.make_quart()) as served, connected(served.port) as (_, writer):
        writer.write(first)
        await waiting.entered.wait()
        writer.write(more)
        await pause()
        connections.abort_connections()
        await wait_until(lambda: bool(waiting.ended))
        await wait_until(lambda: not connections._open)

    assert waiting.ended == ["cancelled"]
    assert waiting.plain is (first == GET)


async def test_closed_connection_serves_nothing_more() -> None:
    """What comes after the decision to close is not begun: its answer could not be sent."""
    waiting = Waiting()

    async with serving(waiting.app) as served, connected(served.port) as (reader, _):
        await wait_until(lambda: bool(connections._open))
        (connection,) = connections._open
        connection.close_soon()
        await asyncio.sleep(0)
        connection.reader.feed_data(GET)
        rest = await reader.read()

    assert rest == b""
    assert not waiting.entered.is_set()


async def test_answer_waits_for_a_client_that_reads_slowly() -> None:
    """The app is told that its answer is sent when the client has taken it; what the client sends meanwhile waits."""
    sent: list[int] = []
    size = 16_000_000

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await answer(send, b"x" * (2 if sent else size))
        sent.append(size)

    async with serving(app) as served, connected(served.port) as (reader, writer):
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(GET)
        await pause(200)
        unsent = list(sent)
        body = await reader.readexactly(size)
        second = await reader.readuntil(b"\r\n\r\nxx")

    assert unsent == []
    assert body == b"x" * size
    assert second.startswith(b"HTTP/1.1 200")


async def test_second_answer_at_the_same_time_ends_the_connection() -> None:
    """An app that sends from two tasks gets an error, and its client one answer, after which nothing follows."""
    errors: list[Exception] = []
    size = 16_000_000

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        async def send_more() -> None:
            try:
                await end(send, b"more")
            except Exception as error:  # noqa: BLE001
                errors.append(error)

        sending = asyncio.create_task(answer(send, b"x" * size))
        await pause()
        await send_more()
        await sending

    async with serving(app) as served, connected(served.port) as (reader, writer):
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
        await wait_until(lambda: bool(errors))
        body = await reader.read(-1)

    assert len(errors) == 1
    assert body == b"x" * size


async def test_late_second_request_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """After plain requests, too, the next one must arrive in time once it has begun."""
    monkeypatch.setattr(connections, "REQUEST_ARRIVES_WITHIN", 0.2)

    async with serving(answer_plainly, keep_alive_timeout=600) as served, connected(served.port) as (reader, writer):
        answers = [await ask(reader, writer) for _ in range(2)]
        await asyncio.sleep(0.3)
        answers.append(await ask(reader, writer))
        writer.write(GET[:9])
        rest = await reader.read()

    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200"] * 3
    assert rest == b""


async def fail(_scope: Any, _receive: Any, _send: Any) -> None:
    """Answer nothing."""
    raise ValueError


async def answer_shortly(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer less than was said."""
    await start(send, (b"content-length", b"2"))
    await end(send, b"")


async def receive_meanwhile(_scope: Any, receive: Any, send: Any) -> None:
    """Answer while a task waits for the client."""
    await receive()
    watching = asyncio.create_task(receive())
    await asyncio.sleep(0)
    await answer(send)
    await watching


def make_quart() -> App:
    """Return an app of Quart that answers everything."""
    waiting = Waiting()
    waiting.released.set()
    return waiting.make_quart()


def count_streams() -> int:
    """Return how many requests are still in memory."""
    return sum(type(thing) is HTTPStream for thing in gc.get_objects())


@pytest.mark.parametrize(
    ("make", "requests"),
    [
        (lambda: answer_plainly, 1000),
        (make_app, 300),
        (make_quart, 300),
        (lambda: receive_meanwhile, 300),
        (lambda: fail, 50),
        (lambda: answer_shortly, 50),
    ],
    ids=["plain", "pieces", "Quart", "receives", "fails", "too short"],
)
async def test_request_leaves_no_garbage(make: Callable[[], App], requests: int) -> None:
    """What belongs to a request goes with it, without a search for circles."""
    async with serving(make()) as served:
        await send(served.port, GET, HEAD)
        gc.collect()
        gc.disable()
        try:
            before = count_streams()
            done = 0
            while done < requests:
                async with connected(served.port) as (reader, writer):
                    with contextlib.suppress(asyncio.IncompleteReadError):
                        while done < requests:
                            done += 1
                            await ask(reader, writer)
            await wait_until(lambda: not connections._open)
            left = count_streams() - before
        finally:
            gc.enable()

    assert left <= 1

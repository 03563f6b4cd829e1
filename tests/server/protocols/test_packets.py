"""How the bytes of requests fall into packets changes no answer, and what follows a last request is ignored."""

import asyncio
import itertools
import re
from typing import Any

import pytest
from hypercorn.asyncio.tcp_server import TCPServer

from quart_tenants.server.protocols import connections
from quart_tenants.server.protocols.connections import LimitedConnection
from tests.server.protocols.serving import DEADLINE, GET, answer, end, pause, send, serving, start
from tests.server.protocols.waiting import Waiting, ask, connected

POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
CLOSE = b"Connection: close\r\n\r\n"
LAST = GET.removesuffix(b"\r\n") + CLOSE
CHUNKS = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"

CONVERSATIONS = {
    "one after the other": GET + POST + b"\r\nabc" + CHUNKS + b"2;x=y\r\n\r\n\r\n0\r\nSum: 1\r\n\r\n" + LAST,
    "a stray line end behind the last": LAST + b"\r\n",
    "a request behind the last": POST + CLOSE + b"abc" + GET,
    "nonsense behind the last": POST + CLOSE + b"abc\0\0",
    "HTTP/1.0": GET.replace(b"/1.1", b"/1.0") + GET,
    "broken head": GET + b"GET / HTTP/1.1\nHost: localhost\r\n\r\n" + GET,
    "broken chunk": CHUNKS + b"2\r\nabc\r\n0\r\n\r\n" + GET,
    "half a line end in an extension": CHUNKS + b"2;a\rb\r\nab\r\n0\r\n\r\n" + GET,
    "line end before the head": b"\r\n" + GET,
    "unknown coding": POST.replace(b"Content-Length: 3", b"Transfer-Encoding: gzip") + b"\r\nabc" + GET,
}
LONG = {
    "long head": GET.removesuffix(b"\r\n") + b"X: " + b"a" * 20_000 + b"\r\n" + CLOSE,
    "head that fits": GET.removesuffix(b"\r\n") + b"X: " + b"a" * 10_000 + b"\r\n" + CLOSE,
    "long trailers": CHUNKS + b"0\r\nX: " + b"a" * 20_000 + b"\r\n\r\n" + LAST,
    "long extension": CHUNKS + b"1;x=" + b"a" * 20_000 + b"\r\na\r\n0\r\n\r\n" + LAST,
}
NEGATIVE = ["a stray line end behind the last", "nonsense behind the last", "long head"]


async def echo(_scope: Any, receive: Any, send: Any) -> None:
    """Answer with the body, once all of it is here."""
    body = b""
    while (message := await receive()).get("more_body"):
        body += message["body"]
    await answer(send, body + message.get("body", b""))


async def converse(kind: type[TCPServer], conversations: list[list[bytes]]) -> list[list[bytes]]:
    """Return the statuses and bodies that each of *conversations* is answered, packet by packet."""
    async with serving(echo, kind, keep_alive_timeout=60.0) as served:
        answers = [await send(served.port, *packets) for packets in conversations]
    return [re.sub(rb"\r\n[^\r]*(?=\r\n)", b"", answer).split(b"HTTP/1.1 ") for answer in answers]


def cut(data: bytes, *places: int) -> list[bytes]:
    """Return *data* in packets that begin at *places*."""
    ends = [0, *places, len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(ends)]


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_packets_change_no_answer(name: str) -> None:
    """The same is answered to all at once, to single bytes, and to two packets wherever they are cut."""
    data = CONVERSATIONS[name]
    packets = [cut(data, *range(1, len(data))), *(cut(data, place) for place in range(1, len(data), 3))]

    whole, *others = await converse(LimitedConnection, [[data], *packets])

    assert len(whole) > 1
    assert [other for other in others if other != whole] == []


@pytest.mark.parametrize("name", LONG)
async def test_limit_is_one_for_all_packets(name: str) -> None:
    """What is too long is refused, and what is not is taken, in one packet as in many."""
    data = LONG[name]
    packets = [cut(data, place) for place in (1, 50, 10_000, 16_384, 16_385, 20_000, len(data) - 1)]

    whole, *others = await converse(LimitedConnection, [[data], *packets, cut(data, *range(0, len(data), 1000))])

    assert whole[1].startswith(b"200" if name == "head that fits" else b"431")
    assert [other for other in others if other != whole] == []


@pytest.mark.parametrize("name", NEGATIVE)
async def test_packets_change_answers_of_hypercorn(name: str) -> None:
    """Hypercorn's own connections answer the same conversations otherwise, or the tests would prove nothing."""
    data = (CONVERSATIONS | LONG)[name]
    place = 18_000 if name == "long head" else len(data) - 2

    whole, other = await converse(TCPServer, [[data], cut(data, place)])

    assert whole != other


@pytest.mark.parametrize("behind", [b"\r\n", GET, b"\0", POST + b"\r\nabc"], ids=["line end", "GET", "nul", "POST"])
async def test_handler_of_a_last_request_is_answered_whatever_follows(behind: bytes) -> None:
    """A payment that was counted is never answered by 400, and what follows it is not begun (RFC 9112, section 9.6)."""
    counted = []

    async def pay(_scope: Any, receive: Any, send: Any) -> None:
        counted.append((await receive())["body"])
        await pause()
        await start(send, (b"content-length", b"4"))
        await end(send, b"paid")

    async with serving(pay) as served:
        answers = [await send(served.port, POST + CLOSE + b"abc" + behind) for _ in range(5)]

    assert counted == [b"abc"] * 5
    assert all(one.startswith(b"HTTP/1.1 200 ") and one.endswith(b"\r\n\r\npaid") for one in answers)


async def test_last_answer_of_a_server_that_ends_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that reaches an idle connection as the server ends is answered, and told that no other one will be."""
    monkeypatch.setattr(connections, "LAST_REQUEST_ARRIVES_WITHIN", DEADLINE)
    waiting = Waiting()
    async with (
        serving(waiting.app, keep_alive_timeout=600) as served,
        connected(served.port) as (idle, idle_writer),
        connected(served.port) as (busy, busy_writer),
    ):
        waiting.released.set()
        await ask(idle, idle_writer)
        waiting.released.clear()
        waiting.entered.clear()
        busy_writer.write(GET)
        await waiting.entered.wait()
        served.end.set()
        await pause()
        idle_writer.write(GET)
        await pause()
        waiting.released.set()
        answers = await asyncio.gather(idle.read(), busy.read())

    for one in answers:
        assert one.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nconnection: close\r\n" in one

"""No request is taken that Hypercorn's parser, h11, refuses, and what both take is the same request."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

import h11
import pytest

from quart_tenants.server.protocols.requests import RequestError, RequestReader

pytestmark = pytest.mark.slow

LIMIT = 64 * 1024
HOST = b"Host: acme.localhost\r\n"


class Reading(NamedTuple):
    """What a request is.

    Attributes:
        method: In capitals.
        target: Path and query, or the whole address.
        version: "1.0" or "1.1".
        headers: In their order, names in lower case.
        body: All of it.
    """

    method: bytes
    target: bytes
    version: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


def read_by_us(data: bytes) -> Reading | None:
    """Return the first request in *data*, or None if there is no whole one or it is refused."""
    reader = RequestReader(LIMIT)
    reader.unread += data
    try:
        head = reader.read_head()
        if head is None:
            return None
        body, ends = reader.read_body()
    except RequestError:
        return None
    # h11 writes this value in lower case.
    headers = [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in head.headers]
    return Reading(head.method.encode(), head.target, head.version.encode(), headers, body) if ends else None


def read_by_h11(data: bytes) -> Reading | None:
    """Return the first request in *data* as h11 reads it."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LIMIT)
    connection.receive_data(data)
    try:
        request = connection.next_event()
        body = b""
        while type(event := connection.next_event()) is h11.Data:
            body += bytes(event.data)
    except h11.RemoteProtocolError:
        return None
    if type(request) is not h11.Request or type(event) is not h11.EndOfMessage:
        return None
    return Reading(request.method, request.target, request.http_version, list(request.headers), body)


def read_naively(data: bytes) -> Reading | None:
    """Return what a reader takes that believes in what it is sent."""
    head, end, body = data.partition(b"\r\n\r\n")
    first, *rest = head.splitlines() or [b""]
    words = first.split()
    if not end or len(words) != 3:
        return None
    pairs = [line.partition(b":")[::2] for line in rest]
    headers = [(name.strip().lower(), value.strip()) for name, value in pairs]
    return Reading(words[0], words[1], words[2].removeprefix(b"HTTP/"), headers, body)


def check(read: Callable[[bytes], Reading | None], data: bytes) -> bool:
    """Say whether *read* takes nothing but what h11 reads the same way."""
    found = read(data)
    return found is None or found == read_by_h11(data)


def put(*headers: bytes, line: bytes = b"GET / HTTP/1.1", rest: bytes = b"") -> bytes:
    """Return a request with one host and *headers*."""
    return line + b"\r\n" + HOST + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + rest


GOOD: dict[str, bytes] = {
    "shortest": put(),
    "odd case": b"GET / HTTP/1.1\r\nhOST: ACME.localhost\r\naCCEPT: */*\r\n\r\n",
    "empty values": put(b"A:", b"B: \t ", b"C: c"),
    "no blank, many blanks": put(b"A:a", b"B: \t b \t c \t"),
    "letters above ASCII": put(b"A: \xe9\xa0\x85"),
    "host of no kind": b"GET / HTTP/1.1\r\nHost: a b,\xffc:/\\@\r\n\r\n",
    "whole address": put(line=b"GET http://acme.localhost:80/data HTTP/1.1"),
    "two slashes": put(line=b"GET //data HTTP/1.1"),
    "percent": put(line=b"GET /%ff%zz%0d%0a?%?%&%00 HTTP/1.1"),
    "star": put(line=b"OPTIONS * HTTP/1.1"),
    "last": put(b"Connection: close"),
    "websocket": put(b"Connection: Upgrade", b"Upgrade: websocket"),
    "HTTP/1.0": put(line=b"GET / HTTP/1.0"),
    "length": put(b"Content-Length: 5", line=b"POST / HTTP/1.1", rest=b"a\r\n\r\n"),
    "length of nothing": put(b"Content-Length: 0", line=b"POST / HTTP/1.1"),
    "length and an upgrade": put(
        b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 5", line=b"POST / HTTP/1.1", rest=b"abcde"
    ),
    "chunks": put(b"Transfer-Encoding: chunked", line=b"PUT / HTTP/1.1", rest=b"3\r\na\n\r\r\n1\r\n\n\r\n0\r\n\r\n"),
    "chunks and an upgrade": put(
        b"Connection: Upgrade",
        b"Upgrade: x",
        b"Transfer-Encoding: chunked",
        line=b"POST / HTTP/1.1",
        rest=b"4\r\n\r\n\r\n\r\n0\r\n\r\n",
    ),
    "extension and trailer": put(
        b"Transfer-Encoding: Chunked", line=b"POST / HTTP/1.1", rest=b'2;a="b;c"\r\nab\r\n00;x=y\r\nSum: 5\r\n\r\n'
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_request_is_read_as_by_h11(name: str) -> None:
    """Or what follows would prove nothing; and nothing behind it is taken for a part of it."""
    found = read_by_us(GOOD[name])

    assert found is not None
    assert found == read_by_h11(GOOD[name])
    assert read_by_us(GOOD[name] + put()) == found


def test_request_that_was_cut_up_is_the_same_to_h11() -> None:
    """Good requests with up to four pieces of others, or of line ends, in them."""
    random = Random(20261123)  # noqa: S311
    good = list(GOOD.values())
    pieces = [b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b"\0", b":", b"\x7f", b"\x80", b"Upgrade: a", HOST, b";"]
    pieces += [b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"close", b""]
    taken = naively = 0
    for _ in range(20_000):
        data = random.choice(good)
        for _ in range(random.randint(1, 4)):
            other, at = random.choice(good), random.randint(0, len(data))
            start = random.randint(0, len(other))
            piece = random.choice([*pieces, other[start : start + random.randint(0, 40)]])
            data = data[:at] + piece + data[at + random.choice((0, 0, 1, 2, 10)) :]

        assert check(read_by_us, data), data
        taken += read_by_us(data) is not None
        naively += not check(read_naively, data)

    # Or it would prove nothing.
    assert taken > 1000
    assert naively > 1000


@pytest.mark.parametrize("name", ["shortest", "extension and trailer", "length"])
def test_every_byte_everywhere_is_the_same_to_h11(name: str) -> None:
    """One byte more, or another one, at any place of a request: h11 agrees, or we refuse."""
    good = GOOD[name]
    edited = [
        good[:at] + bytes([byte]) + good[at + removed :]
        for at in range(len(good) + 1)
        for byte in (*range(0x30), 0x3A, 0x3B, 0x61, *range(0x7E, 0x86), 0xFF)
        for removed in (0, 1)
    ]
    shortened = [good[:at] + good[at + removed :] for at in range(len(good)) for removed in (1, 2)]

    assert [data for data in edited + shortened if not check(read_by_us, data)] == []
    # Or it would prove nothing.
    assert sum(read_by_us(data) is not None for data in edited) > 500
    assert sum(not check(read_naively, data) for data in edited) > 500


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n" + HOST + b"a: " + b"b" * 65_000,
        b"GET / HTTP/1.1\r\n" + HOST + b"a:\r\n" * 16_000 + b"\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"a" * 65_000,
        b"GET " + b"/" * 65_000,
    ],
    ids=["long value", "many lines", "long name", "long target"],
)
def test_long_nonsense_is_told_at_once(data: bytes) -> None:
    """Each byte is looked at a few times only; else these would take minutes."""
    for _ in range(50):
        assert read_by_us(data) is None

"""What is read as a plain request is one, the same, to h11, too; and all that is unusual is left to h11."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

import h11
import pytest
from hypercorn.config import Config
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quart_tenants.server.protocols.http1 import StrictConnection
from quart_tenants.server.protocols.request_heads import PlainRequest, find_plain_request

HOST = b"Host: acme.localhost\r\n"
TOKEN = b"-!#$%&'*+.^_`|~09azAZ"

names = st.sampled_from(
    [b"Accept", b"cookie", b"X-Forwarded-For", b"CONNECTION", b"Host", b"Content-length", b"TE", b"Upgrade", b"Expect"]
) | st.lists(st.sampled_from(TOKEN), min_size=1, max_size=5).map(bytes)
values = st.sampled_from(
    [b"keep-alive", b"Keep-Alive", b"close", b"chunked", b"0", b"a: b", b"", b"\xa0", b"\x85"]
) | st.lists(st.integers(0x20, 0x7E) | st.just(9) | st.integers(0x80, 0xFF), max_size=8).map(bytes)
blanks = st.sampled_from([b"", b" ", b"\t", b" \t ", b"  "])
lines = st.tuples(names, st.just(b":"), blanks, values, blanks, st.just(b"\r\n")).map(b"".join)
targets = st.sampled_from(
    [b"/", b"//data", b"/%zz%00?a=b?c", b"http://acme.localhost/", b"*", b"a:443", b"/#", b"/a\\b", b"?"]
) | st.lists(st.integers(0x21, 0x7E), min_size=1, max_size=8).map(bytes)
methods = st.sampled_from([b"GET"] * 8 + [b"get", b"HEAD", b"PRI", b"GETS"])
versions = st.sampled_from([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"http/1.1", b"HTTP/2.0", b"HTTP/1.10"])


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Heads, most of them good ones."""
    some = draw(st.lists(lines, max_size=4))
    some.insert(draw(st.integers(0, len(some))), draw(st.sampled_from([HOST] * 8 + [b"", HOST * 2])))
    return b"%b %b %b\r\n%b\r\n" % (draw(methods), draw(targets), draw(versions), b"".join(some))


# Where something is put in, taken out or exchanged: in thousandths of the head.
edits = st.tuples(
    st.integers(0, 1000),
    st.integers(0, 2),
    st.sampled_from(
        [b"\r", b"\n", b"\0", b"\t", b"\x0b", b"\x0c", b"\x1f", b"\x7f", b"\x80", b"\xff", b":", b" ", b","]
    )
    | st.sampled_from([b"\r\n", b"\r\n ", b"\n\n", b"\r\n\r\n", HOST, b"", b"Content-Length: 1\r\n"]),
)


class Reading(NamedTuple):
    """What a request is.

    Attributes:
        target: Path and query, or the whole address.
        headers: In their order.
    """

    target: bytes
    headers: list[tuple[bytes, bytes]]


def edit(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Return *data* with *changes*."""
    for place, removed, added in changes:
        at = place * len(data) // 1000
        data = data[:at] + added + data[at + removed :]
    return data


def read_by_h11(data: bytes) -> Reading | None:
    """Return what *data* is if it is a GET, complete and alone, after which the connection stays open."""
    connection = StrictConnection(Config())
    connection.receive_data(data)
    try:
        request, rest = connection.next_event(), connection.next_event()
    except h11.RemoteProtocolError:
        return None
    if type(request) is not h11.Request or type(rest) is not h11.EndOfMessage or connection.trailing_data[0]:
        return None
    connection.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
    connection.send(h11.EndOfMessage())
    is_plain = request.method == b"GET" and request.http_version == b"1.1" and connection.our_state is h11.DONE
    has_upgrade = any(name in (b"upgrade", b"expect") for name, _ in request.headers)
    return Reading(request.target, list(request.headers)) if is_plain and not has_upgrade else None


def read_naively(data: bytes) -> Reading | None:
    """Return what a reader takes that believes in what it is sent."""
    if not data.startswith(b"GET ") or not data.endswith(b"\r\n\r\n"):
        return None
    first, *rest = data.splitlines()[:-1]
    pairs = [line.partition(b":")[::2] for line in rest]
    return Reading(first.split(b" ")[1], [(name.strip().lower(), value.strip()) for name, value in pairs])


def read_at_one_go(data: bytes) -> Reading | None:
    """Return what we take."""
    found = find_plain_request(data)
    return None if found is None else Reading(found.target, found.headers)


def check(read: Callable[[bytes], Reading | None], data: bytes) -> bool:
    """Say whether *read* takes nothing but what h11 reads the same way."""
    found = read(data)
    return found is None or found == read_by_h11(data)


@settings(max_examples=400)
@given(data=heads(), changes=st.lists(edits, max_size=2))
@example(data=b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", changes=[])
def test_plain_request_is_the_same_to_h11(data: bytes, changes: list[tuple[int, int, bytes]]) -> None:
    """Target, names and values in their order; nothing is left over, and the connection stays open."""
    assert check(read_at_one_go, edit(data, changes))


@settings(max_examples=400)
@given(data=st.binary(max_size=60).map(lambda noise: b"GET / HTTP/1.1\r\n" + HOST + noise + b"\r\n\r\n"))
def test_noise_is_the_same_to_h11(data: bytes) -> None:
    """So it is with bytes of all kinds behind a good beginning."""
    assert check(read_at_one_go, data)


def test_request_that_was_cut_up_is_the_same_to_h11() -> None:
    """Good requests with up to four pieces of others, or of line ends: many more of them, made faster."""
    random = Random(20261123)  # noqa: S311
    good = [data for data in PLAIN.values() if len(data) < 200]
    pieces = [b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b"\0", b":", b"\x7f", b"\x80", b"Upgrade: a", HOST]
    pieces += [
        b"Connection: keep-alive\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"close",
        b"",
    ]
    taken = naively = 0
    for _ in range(20_000):
        data = random.choice(good)
        for _ in range(random.randint(1, 4)):
            other, at = random.choice(good), random.randint(0, len(data))
            start = random.randint(0, len(other))
            piece = random.choice([*pieces, other[start : start + random.randint(0, 40)]])
            data = data[:at] + piece + data[at + random.choice((0, 0, 1, 2, 10)) :]

        assert check(read_at_one_go, data), data
        taken += find_plain_request(data) is not None
        naively += not check(read_naively, data)

    # Or it would prove nothing.
    assert taken > 1000
    assert naively > 1000


def test_every_byte_everywhere_is_the_same_to_h11() -> None:
    """One byte more, or another one, at any place of a request: h11 agrees, or is asked."""
    good = b"GET /a?b HTTP/1.1\r\nHost: x\r\nA: b c\r\n\r\n"
    edited = [
        good[:at] + bytes([byte]) + good[at + removed :]
        for at in range(len(good) + 1)
        for byte in range(256)
        for removed in (0, 1)
    ]
    shortened = [good[:at] + good[at + removed :] for at in range(len(good)) for removed in (1, 2)]

    assert [data for data in edited + shortened if not check(read_at_one_go, data)] == []
    # Or it would prove nothing.
    assert sum(find_plain_request(data) is not None for data in edited) > 1000
    assert sum(not check(read_naively, data) for data in edited) > 1000


PLAIN: dict[str, bytes] = {
    "shortest": b"GET / HTTP/1.1\r\n" + HOST + b"\r\n",
    "keep-alive": b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Keep-Alive\r\n\r\n",
    "odd case": b"GET / HTTP/1.1\r\nhOST: ACME.localhost\r\naCCEPT: */*\r\n\r\n",
    "empty values": b"GET / HTTP/1.1\r\nHost:\r\nA:\r\nB: \t \r\n\r\n",
    "no blank, many blanks": b"GET / HTTP/1.1\r\nHost:a\r\nA: \t b \t c \t\r\n\r\n",
    "obs-text": b"GET / HTTP/1.1\r\n" + HOST + b"A: \xe9\xa0\x85\r\n\r\n",
    "host of no kind": b"GET / HTTP/1.1\r\nHost: a b,\xffc:/\\@\r\n\r\n",
    "whole address": b"GET http://acme.localhost:80/data HTTP/1.1\r\n" + HOST + b"\r\n",
    "two slashes": b"GET //data HTTP/1.1\r\n" + HOST + b"\r\n",
    "percent": b"GET /%ff%zz%0d%0a%?%&%00 HTTP/1.1\r\n" + HOST + b"\r\n",
    "long": b"GET /" + b"a" * 30_000 + b" HTTP/1.1\r\n" + HOST + b"A: " + b"b" * 30_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + HOST + b"a:\r\n" * 10_000 + b"\r\n",
}


@pytest.mark.parametrize("name", PLAIN)
def test_usual_request_is_plain(name: str) -> None:
    """It is read at one go, or all this would be for nothing, and h11 reads the same."""
    data = PLAIN[name]

    found = find_plain_request(data)

    assert isinstance(found, PlainRequest)
    assert found.data == data
    assert Reading(found.target, found.headers) == read_by_h11(data)


def put(*headers: bytes, line: bytes = b"GET / HTTP/1.1", rest: bytes = b"") -> bytes:
    """Return a request with one host and *headers*."""
    return line + b"\r\n" + HOST + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + rest


LEFT_TO_H11: dict[str, bytes] = {
    "nothing": b"",
    "body": put(b"Content-Length: 1", rest=b"a"),
    "body of nothing": put(b"CONTENT-LENGTH: 0"),
    "body without length": put(rest=b"a"),
    "chunks": put(b"Transfer-Encoding: chunked", rest=b"0\r\n\r\n"),
    "other coding": put(b"transfer-encoding: gzip"),
    "websocket": put(b"Connection: Upgrade", b"Upgrade: websocket"),
    "HTTP/2": put(b"Upgrade: h2c"),
    "upgrade in the connection only": put(b"Connection: keep-alive, upgrade"),
    "expectation": put(b"Expect: 100-continue"),
    "close": put(b"Connection: close"),
    "CLOSE": put(b"CONNECTION: CLOSE"),
    "close in a list": put(b"Connection: keep-alive, close"),
    "close in another line": put(b"Connection: keep-alive", b"Connection: close"),
    "two hosts": put(HOST.rstrip()),
    "two hosts in two cases": put(b"HOST: a"),
    "no host": b"GET / HTTP/1.1\r\nA: b\r\n\r\n",
    "no header": b"GET / HTTP/1.1\r\n\r\n",
    "HTTP/1.0": put(line=b"GET / HTTP/1.0"),
    "HTTP/1.2": put(line=b"GET / HTTP/1.2"),
    "HTTP/0.9": b"GET /\r\n",
    "version in lower case": put(line=b"GET / http/1.1"),
    "no version": put(line=b"GET /"),
    "method in lower case": put(line=b"get / HTTP/1.1"),
    "HEAD": put(line=b"HEAD / HTTP/1.1"),
    "POST": put(line=b"POST / HTTP/1.1"),
    "OPTIONS": put(line=b"OPTIONS * HTTP/1.1"),
    "CONNECT": put(line=b"CONNECT a:1 HTTP/1.1"),
    "PRI": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no target": put(line=b"GET  HTTP/1.1"),
    "two blanks": put(line=b"GET  / HTTP/1.1"),
    "two blanks later": put(line=b"GET /  HTTP/1.1"),
    "tab": put(line=b"GET\t/ HTTP/1.1"),
    "blank in the target": put(line=b"GET /a b HTTP/1.1"),
    "blank at the end": put(line=b"GET / HTTP/1.1 "),
    "target of other letters": put(line="GET /ä HTTP/1.1".encode()),
    "control character in the target": put(line=b"GET /\x01 HTTP/1.1"),
    "delete in the target": put(line=b"GET /\x7f HTTP/1.1"),
    "empty line before": b"\r\n" + put(),
    "blank before": b" " + put(),
    "folded": put(b"A: b\r\n c"),
    "folded by a tab": put(b"A: b\r\n\tc"),
    "folded first": b"GET / HTTP/1.1\r\n " + HOST + b"\r\n",
    "bare LF": put(b"A: b\nC: d"),
    "bare LF at the end": put()[:-2] + b"\n",
    "bare LF everywhere": put().replace(b"\r", b""),
    "bare CR": put(b"A: b\rC: d"),
    "two CR": put(b"A: b\r"),
    "nul": put(b"A: \0"),
    "escape": put(b"A: \x1b"),
    "vertical tab": put(b"A:\x0bb"),
    "form feed": put(b"A: b\x0c"),
    "delete": put(b"A: \x7f"),
    "no colon": put(b"A"),
    "no name": put(b": b"),
    "blank before the colon": put(b"A : b"),
    "name of other letters": put(b"\xe9: b"),
    "brackets in a name": put(b"(a): b"),
    "two at once": put() * 2,
    "one byte more": put(rest=b"G"),
    "line's end more": put(rest=b"\r\n"),
    "half": put()[:20],
    "one byte less": put()[:-1],
    "no end": put()[:-2],
}


@pytest.mark.parametrize("name", LEFT_TO_H11)
def test_unusual_request_is_left_to_h11(name: str) -> None:
    """Which knows what to do with it."""
    assert find_plain_request(LEFT_TO_H11[name]) is None


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
        assert find_plain_request(data) is None

"""What the reader of HTTP/1 takes and refuses, however the bytes are cut into packets."""

from collections.abc import Iterable

import pytest

from quart_tenants.server.protocols.requests import RequestError, RequestReader

LIMIT = 4096
HOST = b"Host: a\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST
CHUNKED = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"

TAKEN = {
    "a plain request": GET + b"\r\n",
    "HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "a value with blanks around it": GET + b"X: \t b \t\r\n\r\n",
    "an empty value": GET + b"X:\r\n\r\n",
    "a value in Latin-1": GET + b"X: \xe9\r\n\r\n",
    "a body of a known length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc",
    "an empty body": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n",
    "chunks": CHUNKED + b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "a chunk with an extension": CHUNKED + b"3;name=value\r\nabc\r\n0\r\n\r\n",
    "a trailer": CHUNKED + b"3\r\nabc\r\n0\r\nX-Sum: 5\r\n\r\n",
}
REFUSED = {
    "a version that does not exist": b"GET / HTTP/5.6\r\n" + HOST + b"\r\n",
    "the version of HTTP/2": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
    "no version": b"GET /\r\n\r\n",
    "a method in small letters": b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
    "two blanks in the first line": b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a control character in the target": b"GET /\x01 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a length with a comma": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5,5\r\n\r\nabcde",
    "two lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a length with a sign": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +3\r\n\r\nabc",
    "a length and chunks": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a coding that is not chunked": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n",
    "a blank before the colon": GET + b"X : b\r\n\r\n",
    "a folded value": GET + b"X: b\r\n c\r\n\r\n",
    "a name with a bracket": GET + b"X(: b\r\n\r\n",
    "an empty name": GET + b": b\r\n\r\n",
    "a control character in a value": GET + b"X: a\x01b\r\n\r\n",
    "a NUL in a value": GET + b"X: a\x00b\r\n\r\n",
    "a line that ends without CR": b"GET / HTTP/1.1\r\nHost: a\n\r\n",
    "a CR inside a value": GET + b"X: a\rb\r\n\r\n",
    "a blank behind a chunk's size": CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n",
    "a CR in a chunk's extension": CHUNKED + b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "a chunk's size with a sign": CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    "a chunk's size that is no number": CHUNKED + b"x\r\nabc\r\n0\r\n\r\n",
    "a chunk that is longer than it says": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "a control character in a trailer": CHUNKED + b"3\r\nabc\r\n0\r\nX: a\x01\r\n\r\n",
    "a blank before the colon of a trailer": CHUNKED + b"3\r\nabc\r\n0\r\nX : a\r\n\r\n",
    "a head that is too long": GET + b"X: " + b"a" * LIMIT + b"\r\n\r\n",
    "trailers that are too long": CHUNKED + b"0\r\nX: " + b"a" * LIMIT + b"\r\n\r\n",
}


def read(parts: Iterable[bytes]) -> list[object]:
    """Return what comes of *parts*: each head, the body as a whole, and the status of a refusal."""
    reader = RequestReader(LIMIT)
    found: list[object] = []
    body, in_body = b"", False
    try:
        for part in parts:
            reader.unread += part
            while True:
                if not in_body:
                    head = reader.read_head()
                    if head is None:
                        break
                    found.append(head)
                    body, in_body = b"", head.has_body
                    continue
                piece, ends = reader.read_body()
                body += piece
                if not ends:
                    break
                found.append(body)
                in_body = False
    except RequestError as error:
        return [*found, error.status]
    return found


@pytest.mark.parametrize("name", TAKEN)
def test_request_is_taken(name: str) -> None:
    """What RFC 9112 allows is read to its end."""
    found = read([TAKEN[name]])

    assert found
    assert not any(isinstance(item, int) for item in found)


@pytest.mark.parametrize("name", REFUSED)
def test_request_is_refused(name: str) -> None:
    """What two programs could read in two ways, and what is longer than the limit, is refused."""
    assert isinstance(read([REFUSED[name]])[-1], int)


@pytest.mark.parametrize("name", [*TAKEN, *REFUSED])
def test_packets_change_nothing(name: str) -> None:
    """However the bytes are cut into two packets, or sent one by one, the same is read or refused."""
    data = (TAKEN | REFUSED)[name]
    whole = read([data])

    cuts = range(1, len(data)) if len(data) < 300 else (1, 20, 60, 300, len(data) - 3, len(data) - 1)
    differing = [cut for cut in cuts if read([data[:cut], data[cut:]]) != whole]
    one_by_one = read(data[place : place + 1] for place in range(len(data)))

    assert differing == []
    assert one_by_one == whole


def test_requests_in_one_packet_are_read_one_after_the_other() -> None:
    """The end of one request is the beginning of the next, wherever the packets are cut."""
    data = b"".join(TAKEN.values())
    whole = read([data])

    assert len([item for item in whole if not isinstance(item, bytes)]) == len(TAKEN)
    assert [cut for cut in range(1, len(data)) if read([data[:cut], data[cut:]]) != whole] == []

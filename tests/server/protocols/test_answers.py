"""Answers are byte for byte those of Hypercorn and h11, and nothing goes out that h11 would refuse."""

from collections.abc import Sequence
from typing import Any

import h11
import pytest
from hypercorn.utils import build_and_validate_headers
from hypothesis import given
from hypothesis import strategies as st

from quart_tenants.server.protocols.answers import Answer, AnswerError

JSON = (b"Content-Type", b"application/json")
LENGTH = (b"content-length", b"2")

Headers = Sequence[tuple[bytes, bytes]]

GOOD_NAMES = (b"content-length", b"Content-Length", b"content-type", b"Set-Cookie", b"set-cookie", b"x", b" x ")
ODD_NAMES = (b"Connection", b"transfer-encoding", b"date", b"Host", b"x y", b"x:", b"", b"x\r\n", b"\xe9", b":status")
GOOD_VALUES = (b"0", b"2", b"002", b"2, 2", b" 2\t", b"", b"a b", b"\xe9", b"a\r\n", b"a\x85b", b"chunked", b"close")
ODD_VALUES = (b"2,3", b"+2", b"1_0", b"keep-alive, x", b"gzip", b"a\r\nb: c", b"a\nb", b"a\rb", b"a\0b", b"a\x0bb")

names = st.sampled_from([*GOOD_NAMES, *ODD_NAMES])
values = st.sampled_from([*GOOD_VALUES, *ODD_VALUES]) | st.binary(max_size=4)
headers_of_answers = st.lists(st.tuples(names, values) | st.just(LENGTH), max_size=4)


def answer_by_h11(
    method: str, version: str, last: bool, status: int, headers: Headers, pieces: Sequence[bytes]
) -> list[bytes | None]:
    """Return what h11 makes of each step: head, pieces, end. None is a refusal, after which nothing comes."""
    connection = h11.Connection(h11.SERVER)
    close = "Connection: close\r\n" if last else ""
    connection.receive_data(f"{method} / HTTP/{version}\r\nHost: localhost\r\n{close}\r\n".encode())
    connection.next_event()
    connection.next_event()
    made: list[bytes | None] = []
    try:
        made.append(connection.send(h11.Response(status_code=status, headers=build_and_validate_headers(headers))))
        made += [connection.send(h11.Data(data=piece)) for piece in pieces]
        made.append(connection.send(h11.EndOfMessage()))
    except (h11.LocalProtocolError, ValueError, IndexError):
        made.append(None)
    return made


def answer_by_us(
    method: str, version: str, last: bool, status: int, headers: Headers, pieces: Sequence[bytes]
) -> list[bytes | None]:
    """Return what we make of each step."""
    answer = Answer(method, version, closes=last or version == "1.0")
    made: list[bytes | None] = []
    try:
        made.append(answer.begin(status, build_and_validate_headers(headers)))
        made += [answer.write(piece) for piece in pieces]
        made.append(answer.end())
    except (AnswerError, ValueError, IndexError):
        made.append(None)
    return made


def is_stricter(headers: Headers) -> bool:
    """Say whether we refuse *headers* where h11 may not: for a control character in a value."""
    return any((byte < 0x20 and byte != 9) or byte == 0x7F for _, value in headers for byte in value.strip())


@given(
    method=st.sampled_from(["GET", "POST", "HEAD"]),
    version=st.sampled_from(["1.1", "1.1", "1.0"]),
    last=st.booleans(),
    status=st.sampled_from([200, 200, 204, 304, 404, 999, 199, 1000]),
    headers=headers_of_answers,
    pieces=st.lists(st.sampled_from([b"", b"o", b"ok"]), max_size=3),
)
def test_any_answer_is_that_of_h11(
    method: str, version: str, last: bool, status: int, headers: Headers, pieces: Sequence[bytes]
) -> None:
    """Whatever the app says: the same bytes, and a refusal at the same step."""
    without_body = method == "HEAD" or status in (204, 304)
    steps = (method, version, last, status, headers, [] if without_body else pieces)

    expected, made = answer_by_h11(*steps), answer_by_us(*steps)

    # h11 repeats the coding that the app says of an answer that has no body.
    names = [name.strip().lower() for name, _ in headers]
    if status in (204, 304) and b"transfer-encoding" in names:
        return
    # The order of headers that have no meaning in an answer.
    if names.count(b"host") > 1:
        return
    assert made == expected or (made == [None] and is_stricter(headers))


@pytest.mark.parametrize(
    "header",
    [
        (b"link", b"a\r\nset-cookie: b=1"),
        (b"link", b"a\nb"),
        (b"link", b"a\rb"),
        (b"link", b"a\0b"),
        (b"link", b"a\x01b"),
        (b"link", b"x" * 5000 + b"\ny"),
        (b"link: a\r\nx", b"1"),
        (b"li nk", b"1"),
        (b"", b"1"),
        (b"content-length", b"+2"),
        (b"content-length", b"2, 3"),
        (b"content-length", b"1_0"),
        (b"content-length", b"2" * 21),
        (b"content-length", "\uff12".encode()),
        (b"transfer-encoding", b"gzip"),
    ],
)
def test_bad_header_is_refused(header: tuple[bytes, bytes]) -> None:
    """A header that could be two, or a length that is none, never goes out, be it before the answer or with it."""
    for headers in ([JSON, header, LENGTH], [header]):
        with pytest.raises(AnswerError):
            Answer("GET", "1.1", closes=False).begin(200, headers)
    if header[0] not in (b"content-length", b"transfer-encoding"):
        with pytest.raises(AnswerError):
            Answer("GET", "1.1", closes=False).hint(103, [header])


def read_as_client(head: bytes) -> h11.Response:
    """Return what h11, as a client, reads in *head*."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[(b"host", b"x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(head)
    response = client.next_event()
    assert isinstance(response, h11.Response)
    return response


def test_naive_head_breaks_the_rules() -> None:
    """Joined without a look at them, the same headers make two of one, which h11 as a client sees."""
    header = (b"link", b"a\r\nset-cookie: b=1")

    naive = b"HTTP/1.1 200 \r\n" + b"".join(b"%b: %b\r\n" % pair for pair in [header, LENGTH]) + b"\r\n"

    assert (b"set-cookie", b"b=1") in read_as_client(naive).headers


def test_answer_that_was_refused_stays_refused() -> None:
    """After a body that does not fit its head nothing else is written: the client would take it for something else."""
    answer = Answer("GET", "1.1", closes=False)
    answer.begin(200, [LENGTH])
    steps: list[Any] = [lambda: answer.write(b"long"), lambda: answer.write(b"ok"), answer.end]

    for step in steps:
        with pytest.raises(AnswerError):
            step()

    assert not answer.is_done

"""The head of a plain answer is byte for byte that of Hypercorn and h11, and what h11 refuses is refused each time."""

from collections.abc import Sequence
from typing import Any

import h11
import pytest
from hypercorn.config import Config
from hypercorn.utils import build_and_validate_headers
from hypothesis import given
from hypothesis import strategies as st

from quart_tenants.server.protocols.answer_heads import find_plain_head

JSON = (b"Content-Type", b"application/json")
LENGTH = (b"content-length", b"2")

Headers = Sequence[tuple[bytes, bytes]]

GOOD_NAMES = (b"content-length", b"Content-Length", b"content-type", b"Set-Cookie", b"set-cookie", b"x", b" x ")
ODD_NAMES = (b"Connection", b"transfer-encoding", b"date", b"Host", b"x y", b"x:", b"", b"x\r\n", b"\xe9", b":status")
GOOD_VALUES = (b"0", b"2", b"002", b"2, 2", b" 2\t", b"", b"a b", b"\xe9", b"a\r\n", b"a\x85b")
ODD_VALUES = (b"2,3", b"+2", b"1_0", b"close", b"chunked", b"a\r\nb: c", b"a\nb", b"a\rb", b"a\0b", b"a\x0bb", b"\x1f")

names = st.sampled_from([*GOOD_NAMES, *ODD_NAMES])
values = st.sampled_from([*GOOD_VALUES, *ODD_VALUES]) | st.binary(max_size=4)


def make_config(**settings: Any) -> Config:
    """Return settings of a server whose answers have no date, which would change between two."""
    return Config.from_mapping({"include_date_header": False, **settings})


def make_by_h11(status: int, headers: Headers, config: Config) -> bytes:
    """Return the head as Hypercorn makes it."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    connection.next_event()
    connection.next_event()
    return connection.send(
        h11.Response(status_code=status, headers=build_and_validate_headers(headers) + config.response_headers("h11"))
    )


@pytest.mark.parametrize("config", [make_config(), make_config(include_server_header=False, alt_svc_headers=["h3"])])
@pytest.mark.parametrize("status", [200, 205, 299, 301, 404, 500, 999])
@pytest.mark.parametrize(
    "headers",
    [
        [LENGTH],
        [JSON, LENGTH, (b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"link", b"x" * 5000)],
        [(b" CONTENT-length\t", b" 2 "), (b"x", b""), (b"X-y", b"\xe9 \t z\r\n")],
        [(b"content-length", b"2, 2"), JSON],
        [(b"content-length", b"00002")],
        ((b"server", b"other"), LENGTH),
    ],
)
def test_head_is_that_of_h11(config: Config, status: int, headers: Headers) -> None:
    """Names in their case, values and order are the same, at the first time and later."""
    expected = make_by_h11(status, headers, config)

    for _ in range(2):
        head = find_plain_head(status, headers, config)
        assert head is not None
        assert head.data == expected
        assert head.body_length == 2


def test_head_says_its_date() -> None:
    """It is there once, and the app's own one stays beside it, as with Hypercorn."""
    head = find_plain_head(200, [LENGTH], Config())

    assert head is not None
    assert head.data.count(b"\r\ndate: ") == 1
    assert head.data.endswith(b" GMT\r\nserver: hypercorn-h11\r\n\r\n")


@given(status=st.sampled_from([200, 404]), headers=st.lists(st.tuples(names, values) | st.just(LENGTH), max_size=4))
def test_any_head_is_that_of_h11(status: int, headers: Headers) -> None:
    """Whatever the app says: the same head, or none, or a refusal where h11 refuses."""
    config = make_config()
    try:
        expected = make_by_h11(status, headers, config)
    except (h11.LocalProtocolError, ValueError, IndexError):
        expected = b""

    for _ in range(2):
        try:
            head = find_plain_head(status, headers, config)
        except h11.LocalProtocolError:
            assert expected == b""
        else:
            assert head is None or head.data == expected
            # h11's reader finds the body's end where we say it is.
            assert head is None or h11_length(head.data) == head.body_length


def read_as_client(head: bytes) -> h11.Response:
    """Return what h11, as a client, reads in *head*."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[(b"host", b"x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(head)
    response = client.next_event()
    assert isinstance(response, h11.Response)
    return response


def h11_length(head: bytes) -> int:
    """Return how long h11, as a client, takes the body to be."""
    (length,) = (value for name, value in read_as_client(head).headers if name == b"content-length")
    return int(length)


@pytest.mark.parametrize("status", [-1, 0, 99, 100, 101, 103, 199, 204, 304, 1000, 2000])
def test_status_that_h11_treats_otherwise_is_left_to_it(status: int) -> None:
    """One before the answer, one without a body, or none at all."""
    assert find_plain_head(status, [LENGTH], make_config()) is None


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [JSON],
        [LENGTH, LENGTH],
        [LENGTH, (b"Content-Length", b"3")],
        [(b"Transfer-Encoding", b"Chunked")],
        [LENGTH, (b"transfer-encoding", b"chunked")],
        [LENGTH, (b"Connection", b"close")],
        [LENGTH, (b"connection", b"Keep-Alive")],
        [LENGTH, (b"Host", b"x")],
        [LENGTH, ("x", "y")],
        [LENGTH, (bytearray(b"x"), bytearray(b"y"))],
    ],
)
def test_other_answer_is_left_to_h11(headers: Headers) -> None:
    """One that says no length, or more than a length, or is of no bytes: each time."""
    for _ in range(2):
        assert find_plain_head(200, headers, make_config()) is None


@pytest.mark.parametrize(
    "header",
    [
        (b"link", b"a\r\nset-cookie: b=1"),
        (b"link", b"a\nb"),
        (b"link", b"a\rb"),
        (b"link", b"a\0b"),
        (b"link", b"x" * 5000 + b"\ny"),
        (b"link: a\r\nx", b"1"),
        (b"li nk", b"1"),
        (b"", b"1"),
        (b":status", b"200"),
        (b"content-length", b"+2"),
        (b"content-length", b"2, 3"),
        (b"content-length", b"1_0"),
        (b"content-length", b"2" * 21),
        (b"content-length", "\uff12".encode()),
        (b"transfer-encoding", b"gzip"),
    ],
)
def test_bad_header_is_refused_each_time(header: tuple[bytes, bytes]) -> None:
    """A header that could be two, or a length that is none, never goes out."""
    for _ in range(2):
        with pytest.raises(h11.LocalProtocolError):
            find_plain_head(200, [JSON, header, LENGTH], make_config())


def test_naive_head_breaks_the_rules() -> None:
    """Joined without a look at them, the same headers make two of one, which h11 as a client sees."""
    header = (b"link", b"a\r\nset-cookie: b=1")

    naive = b"HTTP/1.1 200 \r\n" + b"".join(b"%b: %b\r\n" % pair for pair in [header, LENGTH]) + b"\r\n"

    assert (b"set-cookie", b"b=1") in read_as_client(naive).headers

"""Headers of answers that were checked before are those of h11, and what h11 refuses is refused each time."""

import h11
import pytest

from quart_tenants.app.answer_heads import check_headers

JSON = (b"Content-Type", b"application/json")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [JSON, (b"content-length", b"2"), (b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"link", b"x" * 5000)],
        [(b"Transfer-Encoding", b"Chunked")],
        [(b"content-length", b"2, 2"), JSON, (b"Content-Length", b"2")],
    ],
)
def test_checked_headers_are_those_of_h11(headers: list[tuple[bytes, bytes]]) -> None:
    """Names and values are the same, in the same order, at the first time and later."""
    expected = h11.Response(status_code=200, headers=headers).headers

    for _ in range(2):
        checked = check_headers(headers)
        assert list(checked) == list(expected)
        assert checked.raw_items() == expected.raw_items()


@pytest.mark.parametrize(
    "headers",
    [
        [(b"link", b"a\r\nset-cookie: b=1")],
        [(b"link", b"x" * 5000 + b"\n")],
        [(b"link: a\r\nx", b"1")],
        [(b"content-length", b"+2")],
        [(b"content-length", b"2"), (b"Content-Length", b"3")],
        [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")],
    ],
)
def test_bad_headers_are_refused_each_time(headers: list[tuple[bytes, bytes]]) -> None:
    """A header that could be two, or two that contradict each other, never go out."""
    for _ in range(2):
        with pytest.raises(h11.LocalProtocolError):
            check_headers([JSON, *headers])

"""Make the head of an HTTP/1 answer of lines that h11 has checked before: nearly all answers have the same."""

import functools
import time
from collections.abc import Iterable
from typing import NamedTuple

from h11._headers import normalize_and_validate
from hypercorn.config import Config

_LENGTH = b"content-length"
# What says how long an answer is, or that it is the connection's last; and what h11 puts before all others.
_SPECIAL = frozenset((_LENGTH, b"transfer-encoding", b"connection", b"host"))
# Not the ones before an answer, and none that does not exist.
_FINAL = range(200, 1000)
# These never have a body, whatever their headers say (RFC 9110, sections 15.3.5 and 15.4.5).
_WITHOUT_BODY = (204, 304)
# What is longer, such as an address with a long query, is seldom there twice.
_LONGEST_REMEMBERED = 512  # bytes


class PlainHead(NamedTuple):
    """The head of an answer that says how long its body is, and leaves the connection open.

    Attributes:
        data: As it is sent.
        body_length: In bytes.
    """

    data: bytes
    body_length: int


def find_plain_head(status: int, headers: Iterable[tuple[bytes, bytes]], config: Config) -> PlainHead | None:
    """Return the head as Hypercorn and h11 make it, or None if they are to make it.

    Args:
        status: A number.
        headers: The app's.
        config: Of the server, whose own headers are added.

    Raises:
        LocalProtocolError: A header is none, such as one with a line's end in it.
    """
    if status not in _FINAL or status in _WITHOUT_BODY:
        return None
    lines, length = [b"HTTP/1.1 %d \r\n" % status], None
    for name, value in (*headers, *_list_server_headers(config, int(time.time()))):
        try:
            line = _check_once(name, value) if len(name) + len(value) <= _LONGEST_REMEMBERED else _check(name, value)
        except (TypeError, ValueError):
            # Not bytes, which Hypercorn makes of it if it can.
            return None
        lines.append(line.data)
        if line.name in _SPECIAL:
            if line.name != _LENGTH or length is not None:
                return None
            length = int(line.value)
    if length is None:
        return None
    lines.append(b"\r\n")
    return PlainHead(b"".join(lines), length)


class _Line(NamedTuple):
    name: bytes
    value: bytes
    data: bytes


def _check(name: bytes, value: bytes) -> _Line:
    # As Hypercorn does it.
    headers = normalize_and_validate([(bytes(name).strip(), bytes(value).strip())])
    ((raw_name, name, value),) = headers._full_items  # noqa: SLF001  (with the case that the app has written)
    return _Line(name, value, b"%s: %s\r\n" % (raw_name, value))


_check_once = functools.lru_cache(maxsize=1024)(_check)


# The date is that of a second.
@functools.lru_cache(maxsize=8)
def _list_server_headers(config: Config, _second: int) -> list[tuple[bytes, bytes]]:
    return config.response_headers("h11")

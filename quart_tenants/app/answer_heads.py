"""Make the heads of HTTP/1 answers of headers that were checked before: nearly all answers have the same."""

import functools
import time

import h11
from h11._headers import Headers, normalize_and_validate
from hypercorn.config import Config
from hypercorn.protocol.events import Event, Response
from hypercorn.protocol.h11 import H11Protocol

_FINAL = 200
# Of these h11 looks at all that there are.
_FRAMING = (b"content-length", b"transfer-encoding")
# What is longer, such as an address with a long query, is seldom there twice.
_LONGEST_REMEMBERED = 512  # bytes


def remember_headers(protocol: H11Protocol) -> None:
    """Let *protocol* answer as Hypercorn does, but have h11 check each header once and not in each answer."""
    send = protocol.stream_send

    async def send_checked(event: Event) -> None:
        if not isinstance(event, Response) or event.status_code < _FINAL:
            await send(event)
            return
        headers = [*event.headers, *_list_server_headers(protocol.config, int(time.time()))]
        if protocol.keep_alive_requests >= protocol.config.keep_alive_max_requests:
            headers.append((b"connection", b"close"))
        head = h11.Response(headers=check_headers(headers), status_code=event.status_code)
        await protocol._send_h11_event(head)  # noqa: SLF001

    protocol.stream_send = send_checked  # type: ignore[method-assign]


def check_headers(headers: list[tuple[bytes, bytes]]) -> Headers:
    """Return *headers* as h11 has them.

    Raises:
        LocalProtocolError: One of them is none, or they contradict each other.
    """
    checked = [
        _check_once(name, value) if len(name) + len(value) <= _LONGEST_REMEMBERED else _check(name, value)
        for name, value in headers
    ]
    framing = [name for _, name, _ in checked if name in _FRAMING]
    return normalize_and_validate(headers) if len(framing) > 1 else Headers(checked)


def _check(name: bytes, value: bytes) -> tuple[bytes, bytes, bytes]:
    (checked,) = normalize_and_validate([(name, value)])._full_items  # noqa: SLF001
    return checked


# The date is that of a second.
@functools.lru_cache(maxsize=8)
def _list_server_headers(config: Config, _second: int) -> list[tuple[bytes, bytes]]:
    return config.response_headers("h11")


_check_once = functools.lru_cache(maxsize=1024)(_check)

"""Read at one go what nearly every request is: a GET without a body, complete in what came from the socket.

h11 reads each line by itself, checks it, and checks all of them again. Whatever is unusual is left to it.
"""

import re
from typing import NamedTuple

# Less than h11 takes (RFC 9110, section 5.5; RFC 9112, section 3): no control characters, no line that is folded.
_PLAIN_HEAD = re.compile(
    rb"GET ([\x21-\x7e]+) HTTP/1\.1\r\n"
    rb"((?:[-!#$%&'*+.^_`|~0-9a-zA-Z]+:[\t\x20-\x7e\x80-\xff]*\r\n)+)\r\n"
)
# A body, another protocol, or an answer before the answer.
_NOT_PLAIN = frozenset((b"content-length", b"transfer-encoding", b"upgrade", b"expect"))


class PlainRequest(NamedTuple):
    """A GET by HTTP/1.1 without a body, after whose answer the connection stays open.

    Attributes:
        data: As it came.
        target: Path and query, or the whole address.
        headers: In their order, names in lower case, as h11 has them.
    """

    data: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]


def find_plain_request(data: bytes) -> PlainRequest | None:
    """Return the request that *data* is, or None if that is anything else, which is for h11."""
    found = _PLAIN_HEAD.fullmatch(data)
    if found is None:
        return None
    headers, hosts = [], 0
    # Behind the last line's end there is nothing.
    for line in found[2].split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name in _NOT_PLAIN or (name == b"connection" and value.lower() != b"keep-alive"):
            return None
        hosts += name == b"host"
        headers.append((name, value))
    return PlainRequest(data, found[1], headers) if hosts == 1 else None

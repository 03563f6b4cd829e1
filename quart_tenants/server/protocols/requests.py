"""Read requests of HTTP/1 with llhttp, by httptools, and refuse what llhttp forgives."""

import re
from dataclasses import dataclass

import httptools

_END_OF_HEAD = b"\r\n\r\n"
# llhttp also takes several blanks, HTTP/0.9, HTTP/2.0, and the first lines of other protocols.
_FIRST_LINE = re.compile(rb"([A-Z-]+) ([\x21-\x7e]+) HTTP/(1\.[01])\r\n")
# One half of a line's end without the other. A CR that comes last may yet be followed by its LF.
_BROKEN_LINE = re.compile(rb"(?<!\r)\n|\r(?=[^\n])")
# A body in chunks gets a reader of its own, behind a head that is always the same one.
_HEAD_BEFORE_CHUNKS = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


class RequestError(Exception):
    """A request cannot be read, or could be read in two ways.

    Attributes:
        status: Of the answer.
    """

    def __init__(self, status: int = 400) -> None:
        super().__init__(status)
        self.status = status


@dataclass(slots=True)
class Head:
    """What comes before the body of a request.

    Attributes:
        method: In capitals.
        target: Path and query, or a whole address.
        version: "1.0" or "1.1".
        headers: Names in lower case, and values, in the order in which they came.
        raw_headers: With names as they were written.
        is_last: Whether the client sends no further request on this connection.
        is_websocket: Whether it asks to go on as a websocket.
        awaits_continue: Whether it sends its body only after an answer 100.
        has_body: Whether a body follows, which may be empty.
    """

    method: str
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    raw_headers: list[tuple[bytes, bytes]]
    is_last: bool
    is_websocket: bool
    awaits_continue: bool
    has_body: bool


class RequestReader:
    """Takes bytes as they come and gives heads and bodies. How the bytes were cut into packets changes nothing.

    Attributes:
        unread: The bytes that came and were not read yet.
    """

    def __init__(self, max_length: int) -> None:
        """Take heads, and lines and trailers of chunked bodies, of at most *max_length* bytes."""
        self.unread = bytearray()
        self._max_length = max_length
        # No head ends before this byte.
        self._searched = 0
        # What is left of the body: a number of bytes, or chunks.
        self._left = 0
        self._chunks: _Chunks | None = None

    def read_head(self) -> Head | None:
        """Return the next request's head, or None while it is not complete.

        Raises:
            RequestError: It is no head, or too long.
        """
        end = self.unread.find(_END_OF_HEAD, self._searched, self._max_length)
        if end < 0:
            self._check_beginning()
            self._searched = max(len(self.unread) - 3, 0)
            return None
        end += len(_END_OF_HEAD)
        data = bytes(self.unread[:end])
        del self.unread[:end]
        self._searched = 0
        head, self._left = _parse_head(data)
        self._chunks = _Chunks(self._max_length) if head.has_body and self._left < 0 else None
        return head

    def read_body(self) -> tuple[bytes, bool]:
        """Return what is here of the body, and whether it ends there.

        Raises:
            RequestError: Its chunks cannot be read.
        """
        if self._chunks is not None:
            return self._chunks.read(self.unread)
        data = bytes(self.unread[: self._left])
        del self.unread[: self._left]
        self._left -= len(data)
        return data, self._left == 0

    def _check_beginning(self) -> None:
        # A client that waits for the answer to such a beginning will not send a whole head.
        if self.unread and self.unread[0] < ord("!"):
            raise RequestError
        if _BROKEN_LINE.search(self.unread, self._searched, self._max_length):
            raise RequestError
        if len(self.unread) >= self._max_length:
            raise RequestError(431)


class _Fields:
    """What httptools tells about a head."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.complete = True


def _parse_head(data: bytes) -> tuple[Head, int]:
    """Return the head that *data* is, and how many bytes its body has: -1 where the body comes in chunks."""
    line = _FIRST_LINE.match(data)
    if line is None:
        raise RequestError
    told = _Fields()
    try:
        httptools.HttpRequestParser(told).feed_data(data)
    except httptools.HttpParserUpgrade:
        # llhttp would stop here. What follows is read by ourselves.
        pass
    except httptools.HttpParserError:
        raise RequestError from None
    if not told.complete:
        raise RequestError
    headers = [(name.lower(), value) for name, value in told.headers]
    values = dict(headers)
    method, version = line[1].decode(), line[3].decode()
    if b"host" not in values and version == "1.1":
        raise RequestError
    if len(values) < len(headers) and [name for name, _ in headers].count(b"host") > 1:
        raise RequestError
    coding = values.get(b"transfer-encoding")
    if coding is not None and coding.lower() != b"chunked":
        raise RequestError(501)
    if coding is not None and version == "1.0":
        raise RequestError
    connection = _list_tokens(headers, b"connection") if b"connection" in values else []
    has_body = coding is not None or b"content-length" in values
    head = Head(
        method,
        line[2],
        version,
        headers,
        told.headers,
        # After CONNECT a proxy may take for another protocol what we take for a request.
        is_last=version == "1.0" or b"close" in connection or method == "CONNECT",
        is_websocket=method == "GET"
        and b"upgrade" in connection
        and _list_tokens(headers, b"upgrade") == [b"websocket"],
        awaits_continue=version == "1.1"
        and b"expect" in values
        and b"100-continue" in _list_tokens(headers, b"expect"),
        has_body=has_body,
    )
    return head, -1 if coding is not None else int(values.get(b"content-length", b"0"))


def _list_tokens(headers: list[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    """Return what the headers that are called *wanted* list, in lower case."""
    texts = [value for name, value in headers if name == wanted]
    return [token.strip(b" \t").lower() for text in texts for token in text.split(b",")]


class _ChunkEvents:
    """What httptools tells about a body in chunks."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.chunk_ended = False
        self.complete = False

    # There is no `on_header`: httptools would keep a trailer in memory while it is not complete.
    def on_body(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def on_chunk_complete(self) -> None:
        self.chunk_ended = True

    def on_message_complete(self) -> None:
        self.complete = True


class _Chunks:
    """Reads a body in chunks, by a parser of its own that is fed line by line.

    httptools does not say where a body ends. It can end only with a line, so that whatever follows is still unread.
    """

    def __init__(self, max_length: int) -> None:
        self._max_length = max_length
        # The bytes since the last one of a chunk: a size with its extensions, or trailers.
        self._beside = 0
        self._told = _ChunkEvents()
        self._parser = httptools.HttpRequestParser(self._told)
        self._parser.feed_data(_HEAD_BEFORE_CHUNKS)

    def read(self, unread: bytearray) -> tuple[bytes, bool]:
        """Take what *unread* has of the body; return the bytes of its chunks, and whether it ends there."""
        told, at = self._told, 0
        told.pieces = []
        while at < len(unread) and not told.complete:
            end = unread.find(b"\n", at) + 1 or len(unread)
            pieces = len(told.pieces)
            told.chunk_ended = False
            try:
                self._parser.feed_data(unread[at:end])
            except httptools.HttpParserError:
                raise RequestError from None
            is_beside = len(told.pieces) == pieces and not told.chunk_ended
            self._beside = self._beside + end - at if is_beside else 0
            if self._beside > self._max_length:
                raise RequestError(431)
            at = end
        del unread[:at]
        return b"".join(told.pieces), told.complete

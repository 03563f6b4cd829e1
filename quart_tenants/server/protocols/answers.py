"""Write answers of HTTP/1, and refuse what a client would read otherwise than the app meant it."""

import functools
import re
from collections.abc import Iterable, Sequence

# RFC 9110, sections 5.1 and 5.5. A value with a line's end would be two headers, and a part of one could be a body.
_LINE = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+: [\t\x20-\x7e\x80-\xff]*\r\n")
_LENGTH = re.compile(rb"[0-9]{1,20}")
_SPECIAL = frozenset((b"content-length", b"transfer-encoding", b"connection", b"host"))
_LENGTH_ONLY = frozenset((b"content-length",))
# These answers never have a body, whatever their headers say (RFC 9110, sections 15.3.5 and 15.4.5).
_WITHOUT_BODY = (204, 304)


class AnswerError(Exception):
    """An app has sent what cannot be an answer, or not at this moment."""


# What an answer needs next. HEAD becomes one of the three in the middle by `begin`, and each of these becomes DONE by
# `end`. Whatever is refused after the head makes FAILED, because the client waits for bytes that do not come. These are
# no enum, of which a look-up takes six times as long.
_HEAD, _COUNTED, _CHUNKED, _UNTIL_CLOSE, _DONE, _FAILED = range(6)


class Answer:
    """The answer to one request, as bytes.

    Attributes:
        closes: Whether nothing can follow it on its connection.
    """

    def __init__(self, method: str, version: str, *, closes: bool) -> None:
        self.closes = closes
        self._method = method
        self._version = version
        self._state = _HEAD
        self._left = 0

    @property
    def has_begun(self) -> bool:
        """Whether its head was written."""
        return self._state != _HEAD

    @property
    def is_done(self) -> bool:
        """Whether it is complete."""
        return self._state == _DONE

    def hint(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Return an answer before the answer, such as 100 or 103.

        Raises:
            AnswerError: It comes too late, or a header is none.
        """
        if self.has_begun:
            self._fail("the head of the answer was sent before")
        if not 100 <= status < 200:
            raise AnswerError(f"{status} is no status of an answer")
        return _write_head(status, [line for _, line in _check_all(headers)])

    def begin(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Return the head, with headers that say where the body ends and whether the connection does.

        Raises:
            AnswerError: The status is none, a header is none, or the headers contradict each other.
        """
        if self._state != _HEAD:
            self._fail("an answer has one head")
        if not 200 <= status < 1000:
            raise AnswerError(f"{status} is no status of an answer")
        checked = _check_all(headers)
        sent = dict(checked)
        has_no_body = status in _WITHOUT_BODY or self._method == "HEAD"
        if len(sent) == len(checked) and sent.keys() & _SPECIAL == _LENGTH_ONLY and not self.closes:
            # Nearly every answer is of this kind.
            self._state = _COUNTED
            self._left = 0 if has_no_body else int(_read_value(sent[b"content-length"]))
            return _write_head(status, sent.values())
        return self._begin_special(status, checked, has_no_body=has_no_body)

    def _begin_special(self, status: int, checked: list[tuple[bytes, bytes]], *, has_no_body: bool) -> bytes:
        """Do what `begin` does where headers are there more than once, or more than the length is special."""
        lines: list[bytes] = []
        length: bytes | None = None
        is_chunked = False
        connection: set[bytes] = set()
        for lower, line in checked:
            if lower == b"content-length":
                if length is None:
                    length = _read_value(line)
                    lines.append(line)
                elif length != _read_value(line):
                    raise AnswerError("an answer has one Content-Length")
            elif lower == b"transfer-encoding":
                if is_chunked or _read_value(line).lower() != b"chunked":
                    raise AnswerError("an answer's only Transfer-Encoding is chunked")
                is_chunked = True
            elif lower == b"connection":
                connection.update(token.strip().lower() for token in _read_value(line).split(b","))
                if not self.closes:
                    lines.append(line)
            elif lower == b"host":
                lines.insert(0, line)
            else:
                lines.append(line)
        is_counted = status in _WITHOUT_BODY or (length is not None and not is_chunked)
        if not is_counted:
            lines = [line for line in lines if not line.lower().startswith(b"content-length:")]
            if self._version == "1.1":
                lines.append(b"Transfer-Encoding: chunked\r\n")
        if self.closes:
            tokens = sorted((connection - {b"keep-alive", b""}) | {b"close"})
            lines += [b"Connection: %b\r\n" % token for token in tokens]
        head = _write_head(status, lines)
        self.closes = self.closes or b"close" in connection
        self._left = int(length or 0) if is_counted and not has_no_body else 0
        if has_no_body or is_counted:
            self._state = _COUNTED
        else:
            self._state = _CHUNKED if self._version == "1.1" else _UNTIL_CLOSE
        return head

    def write(self, data: bytes) -> bytes:
        """Return a piece of the body.

        Raises:
            AnswerError: The head says that the body is shorter, or there is no head yet.
        """
        if self._state == _CHUNKED:
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        if self._state == _UNTIL_CLOSE:
            return data
        if self._state != _COUNTED or len(data) > self._left:
            self._fail("the body is longer than the head of its answer says")
        self._left -= len(data)
        return data

    def end(self) -> bytes:
        """Return what ends the body.

        Raises:
            AnswerError: The head says that the body is longer, or there is no head yet.
        """
        was, is_short = self._state, self._left > 0
        if was in (_HEAD, _DONE, _FAILED) or is_short:
            self._fail("the body is shorter than the head of its answer says")
        self._state = _DONE
        return b"0\r\n\r\n" if was == _CHUNKED else b""

    def _fail(self, reason: str) -> None:
        self._state = _FAILED
        raise AnswerError(reason)


def _parse_length(value: bytes) -> bytes:
    if _LENGTH.fullmatch(value):
        return value
    lengths = {length.strip() for length in value.split(b",")}
    length = lengths.pop()
    if lengths or not _LENGTH.fullmatch(length):
        raise AnswerError(f"Content-Length is {value!r}: give a number of bytes")
    return length


def _check(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Return the name of *header* in lower case, and its line."""
    name, value = (bytes(part).strip() for part in header)
    if name.lower() == b"content-length":
        value = _parse_length(value)
    line = b"%b: %b\r\n" % (name, value)
    if not _LINE.fullmatch(line):
        raise AnswerError(f"{name!r} with the value {value[:80]!r} is no header")
    return name.lower(), line


# Nearly all answers of an app have the same headers.
_check_once = functools.lru_cache(maxsize=512)(_check)


def _check_all(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    try:
        return list(map(_check_once, headers))
    except TypeError:
        # A list or a bytearray cannot be remembered.
        return list(map(_check, headers))


def _read_value(line: bytes) -> bytes:
    return line.partition(b": ")[2][:-2]


def _write_head(status: int, lines: Iterable[bytes]) -> bytes:
    return b"HTTP/1.1 %d \r\n%b\r\n" % (status, b"".join(lines))

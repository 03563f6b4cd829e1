"""Apps that answer in every way, and requests of every kind, for comparisons with Hypercorn."""

import asyncio
from typing import Any

from tests.server.protocols.serving import App, answer, end, start

LENGTH = (b"content-length", b"2")


def send_all(*messages: Any) -> App:
    """Return an app that sends *messages* and takes what is raised."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return app


def begin(*headers: tuple[Any, Any], status: Any = 200, **more: Any) -> dict[str, Any]:
    """Return an answer's beginning."""
    return {"type": "http.response.start", "status": status, "headers": list(headers), **more}


def body(data: Any = b"ok", **more: Any) -> dict[str, Any]:
    """Return a piece of an answer's body."""
    return {"type": "http.response.body", "body": data, **more}


async def fail_at_once(_scope: Any, _receive: Any, _send: Any) -> None:
    """Answer nothing."""
    raise ValueError


async def fail_after_start(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer half."""
    await start(send, LENGTH)
    raise ValueError


async def fail_later_after_start(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer half, which is sent."""
    await start(send, LENGTH)
    await asyncio.sleep(0.01)
    raise ValueError


async def fail_after_piece(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer a bit more."""
    await start(send, LENGTH)
    await send(body(b"o", more_body=True))
    raise ValueError


async def fail_after_end(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer, and then fail."""
    await answer(send)
    raise ValueError


async def repair(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer otherwise when an answer is refused."""
    try:
        await start(send, LENGTH, (b"x", b"a\r\nb: c"))
    except Exception:  # noqa: BLE001
        await start(send, LENGTH, status=500)
    await end(send, b"no")


async def describe(scope: Any, receive: Any, send: Any) -> None:
    """Answer what the app is told about a request."""
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    told = {
        name: [address[0] for address in [value]] if name == "client" else value
        for name, value in scope.items()
        if name not in ("extensions", "server")
    }
    await answer(send, repr((sorted(told.items()), sorted(scope["extensions"]), messages)).encode())


async def wait_between(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer with time between head and body."""
    await start(send, LENGTH)
    await asyncio.sleep(0.01)
    await end(send, b"ok")


async def wait_before(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer late."""
    await asyncio.sleep(0.01)
    await answer(send)


async def work_afterwards(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer, and do something else."""
    await answer(send)
    await asyncio.sleep(0.01)


async def send_afterwards(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer, and try to answer again, later, too."""
    await answer(send)
    for _ in range(2):
        for message in (begin(LENGTH), body(b"no")):
            try:
                await send(message)
            except Exception:  # noqa: BLE001
                await asyncio.sleep(0.005)


async def change_headers(_scope: Any, _receive: Any, send: Any) -> None:
    """Change the list after it was sent."""
    headers = [LENGTH, (b"y", b"1")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    headers[:] = [(b"y", b"a\r\nb: c")]
    await send(body(b"o", more_body=True))
    await send(body(b"k"))


async def give_headers_once(_scope: Any, _receive: Any, send: Any) -> None:
    """Send headers that can be read only once."""
    headers = [(b"set-cookie", b"a=1"), (b"y", b"1")]
    await send({"type": "http.response.start", "status": 200, "headers": iter(headers)})
    await send(body())


async def give_length_once(_scope: Any, _receive: Any, send: Any) -> None:
    """Send headers that can be read only once, of an answer whose body comes in pieces."""
    headers = [LENGTH, (b"set-cookie", b"a=1")]
    await send({"type": "http.response.start", "status": 200, "headers": iter(headers)})
    await send(body(b"o", more_body=True))
    await send(body(b"k"))


APPS: dict[str, App] = {
    "complete": send_all(begin(LENGTH, (b"Content-Type", b"text/plain")), body()),
    "describes": describe,
    "empty": send_all(begin((b"content-length", b"0")), body(b"")),
    "no body": send_all(begin((b"content-length", b"0")), {"type": "http.response.body"}),
    "204": send_all(begin(status=204), body(b"")),
    "204 with length": send_all(begin((b"content-length", b"0"), status=204), body(b"")),
    "204 with body": send_all(begin(LENGTH, status=204), body()),
    "205": send_all(begin((b"content-length", b"0"), status=205), body(b"")),
    "304": send_all(begin(LENGTH, status=304), body(b"")),
    "304 with body": send_all(begin(LENGTH, status=304), body()),
    "404": send_all(begin(LENGTH, status=404), body()),
    "103": send_all(begin((b"link", b"</x>"), status=103), begin(LENGTH), body()),
    "100": send_all(begin(status=100), body(b"")),
    "99": send_all(begin(LENGTH, status=99), body()),
    "999": send_all(begin(LENGTH, status=999), body()),
    "1000": send_all(begin(LENGTH, status=1000), body()),
    "text as status": send_all(begin(LENGTH, status="200"), body()),
    "text as status, in pieces": send_all(begin(LENGTH, status="200"), body(b"o", more_body=True), body(b"k")),
    "no status": send_all({"type": "http.response.start"}, body()),
    "no headers": send_all({"type": "http.response.start", "status": 200}, body()),
    "no length": send_all(begin(), body()),
    "no length, empty": send_all(begin(), body(b"")),
    "two pieces": send_all(begin(LENGTH), body(b"o", more_body=True), body(b"k")),
    "end apart": send_all(begin(LENGTH), body(more_body=True), body(b"")),
    "empty piece first": send_all(begin(LENGTH), body(b"", more_body=True), body()),
    "pieces without length": send_all(begin(), body(b"o", more_body=True), body(b"k")),
    "trailers": send_all(begin(LENGTH, trailers=True), body()),
    "too short": send_all(begin(LENGTH), body(b"o")),
    "too long": send_all(begin(LENGTH), body(b"oks")),
    "too long in pieces": send_all(begin(LENGTH), body(more_body=True), body(b"s")),
    "body missing": send_all(begin(LENGTH)),
    "body never ends": send_all(begin(LENGTH), body(more_body=True)),
    "nothing": send_all(),
    "fails at once": fail_at_once,
    "fails after start": fail_after_start,
    "fails later after start": fail_later_after_start,
    "fails after a piece": fail_after_piece,
    "fails after the end": fail_after_end,
    "repairs": repair,
    "start twice": send_all(begin(LENGTH), begin(LENGTH), body()),
    "body first": send_all(body(), begin(LENGTH)),
    "after the end": send_all(begin(LENGTH), body(), body()),
    "all twice": send_all(begin(LENGTH), body(), begin(LENGTH), body()),
    "sends afterwards": send_afterwards,
    "works afterwards": work_afterwards,
    "waits before": wait_before,
    "waits between": wait_between,
    "unknown message": send_all({"type": "http.response.push", "path": "/x", "headers": []}),
    "early hint": send_all({"type": "http.response.early_hint", "links": [b"</x>"]}),
    "unknown message between": send_all(begin(LENGTH), {"type": "http.response.trailers", "headers": []}),
    "header with a line's end": send_all(begin(LENGTH, (b"x", b"a\r\nset-cookie: b")), body()),
    "header with an LF": send_all(begin(LENGTH, (b"x", b"a\nb")), body()),
    "header with a nul": send_all(begin(LENGTH, (b"x", b"a\0b")), body()),
    "header with blanks": send_all(begin((b" Content-Length ", b"\t2 "), (b"x", b" a\t b\r\n")), body()),
    "header with obs-text": send_all(begin(LENGTH, (b"x", b"\xe9")), body()),
    "header without value": send_all(begin(LENGTH, (b"x", b"")), body()),
    "header without name": send_all(begin(LENGTH, (b"", b"x")), body()),
    "pseudo header": send_all(begin(LENGTH, (b":status", b"200")), body()),
    "name of two words": send_all(begin(LENGTH, (b"x y", b"1")), body()),
    "header of text": send_all(begin(LENGTH, ("x", "y")), body()),
    "header in a bytearray": send_all(begin(LENGTH, (bytearray(b"x"), bytearray(b"y"))), body()),
    "header of three": send_all(begin(LENGTH, (b"x", b"y", b"z")), body()),  # type: ignore[arg-type]
    "host": send_all(begin(LENGTH, (b"x", b"1"), (b"Host", b"x")), body()),
    "own date": send_all(begin((b"date", b"x"), LENGTH), body()),
    "two lengths": send_all(begin(LENGTH, LENGTH), body()),
    "two other lengths": send_all(begin(LENGTH, (b"Content-Length", b"3")), body()),
    "length twice in one": send_all(begin((b"content-length", b"2, 2")), body()),
    "length with zeros": send_all(begin((b"content-length", b"002")), body()),
    "length with sign": send_all(begin((b"content-length", b"+2")), body()),
    "length with a line": send_all(begin((b"content-length", b"1_0")), body(b"0123456789")),
    "length of other digits": send_all(begin((b"content-length", "\uff12".encode())), body()),
    "length without end": send_all(begin((b"content-length", b"2" * 30)), body()),
    "closes": send_all(begin(LENGTH, (b"Connection", b"close")), body()),
    "keeps alive": send_all(begin(LENGTH, (b"Connection", b"keep-alive")), body()),
    "chunked": send_all(begin((b"Transfer-Encoding", b"chunked")), body()),
    "chunked with length": send_all(begin((b"Transfer-Encoding", b"chunked"), LENGTH), body()),
    "gzip": send_all(begin((b"Transfer-Encoding", b"gzip"), LENGTH), body()),
    "body in a bytearray": send_all(begin(LENGTH), body(bytearray(b"ok"))),
    "body of words": send_all(begin(LENGTH), body(memoryview(b"okokokok").cast("I"))),
    "body of text": send_all(begin(LENGTH), body("ok")),
    "body is None": send_all(begin(LENGTH), body(None)),
}
# Whose headers Hypercorn's access log looks for when they are no longer there.
FLEETING_APPS: dict[str, App] = {
    "changes its headers": change_headers,
    "gives headers once": give_headers_once,
    "gives length once": give_length_once,
}
_LOCAL = b"Host: localhost\r\n"


def ask(line: bytes, *headers: bytes, rest: bytes = b"") -> bytes:
    """Return a request for `{path}`."""
    return line + b" {path} HTTP/1.1\r\n" + _LOCAL + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + rest


PLAIN = ask(b"GET")
# Each is what is sent at once.
REQUESTS: dict[str, tuple[bytes, ...]] = {
    "plain": (PLAIN,),
    "twice": (PLAIN, PLAIN),
    "two at once": (PLAIN * 2,),
    "three at once": (PLAIN * 3,),
    "one and two at once": (PLAIN, PLAIN * 2),
    "one and a half": (PLAIN + PLAIN[:20], PLAIN[20:]),
    "one, then half": (PLAIN, PLAIN[:20], PLAIN[20:]),
    "half": (PLAIN[:20], PLAIN[20:], PLAIN),
    "HEAD": (ask(b"HEAD"), PLAIN),
    "POST": (ask(b"POST", b"Content-Length: 3", rest=b"abc"),),
    "GET with a body": (ask(b"GET", b"Content-Length: 3", rest=b"abc"), PLAIN),
    "plain, POST, plain": (PLAIN, ask(b"POST", b"Content-Length: 3", rest=b"abc"), PLAIN),
    "body that looks like a request": (PLAIN, ask(b"POST", b"Content-Length: %d" % len(PLAIN)), PLAIN, PLAIN),
    "chunks": (ask(b"POST", b"Transfer-Encoding: chunked", rest=b"3\r\nabc\r\n0\r\n\r\n"), PLAIN),
    "close": (ask(b"GET", b"Connection: close"),),
    "last closes": (PLAIN, ask(b"GET", b"Connection: close")),
    "HTTP/1.0": (PLAIN.replace(b"/1.1", b"/1.0"),),
    "HTTP/1.0 later": (PLAIN, PLAIN.replace(b"/1.1", b"/1.0")),
    "nonsense later": (PLAIN, b"\r\n\r\nnonsense\r\n\r\n", PLAIN),
    "expects": (ask(b"POST", b"Content-Length: 3", b"Expect: 100-continue"), b"abc", PLAIN),
}


# What is read at one go, if anything is; for "describes", which shows what the app is told.
ODD_REQUESTS = {
    name: (request.replace(b"{path}", b"/?describes"),)
    for name, request in {
        "odd case": ask(b"GET", b"ACCEPT: */*", b"aCCEPT: a"),
        "obs-text": ask(b"GET", b"X: \xe9\x85\xa0"),
        "blanks": ask(b"GET", b"X:\ta  b \t"),
        "no value": ask(b"GET", b"X:"),
        "keep-alive": ask(b"GET", b"Connection: Keep-Alive"),
        "many headers": ask(b"GET", *(b"X: %d" % number for number in range(2000))),
        "over 16 KiB": ask(b"GET", b"X: " + b"a" * 20_000),
        "over 16 KiB of target": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + _LOCAL + b"\r\n",
        "over 64 KiB": ask(b"GET", b"X: " + b"a" * 70_000),
        "odd host": b"GET / HTTP/1.1\r\nHost: a b,@\xff:/\r\n\r\n",
        "empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "two hosts": ask(b"GET", b"HOST: b"),
        "no host": b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
        "nul": ask(b"GET", b"X: \0"),
        "control character": ask(b"GET", b"X: \x01"),
        "blank before the colon": ask(b"GET", b"X : y"),
        "nonsense": b"nonsense\r\n\r\n",
        "byte too much": ask(b"GET", rest=b"\0"),
    }.items()
} | {
    target: (b"GET " + target.encode() + b" HTTP/1.1\r\n" + _LOCAL + b"\r\n",)
    for target in (
        *(
            "http://localhost/a?b",
            "http://other",
            "HTTPS://u:p@other:1/%41",
            "//a//b",
            "*",
            "a",
            "?",
            "/?",
            "/#a",
            "/a?b?c",
        ),
        *(
            "/%41%2F%2e",
            "/%",
            "/%zz%4",
            "/%ff%C3%A4",
            "/%00%0d%0a",
            "/;a=b",
            "/a\\b",
            '/<>"{}|^`',
            "/\x7f",
            "/ä",
            "/a b",
        ),
    )
}
# Hypercorn takes these, and we refuse them: control characters, targets that are neither path nor address, and long
# heads, which Hypercorn takes in one packet and refuses in two.
STRICTER = {"control character", "over 16 KiB", "over 16 KiB of target", "many headers", "a", "?"}
BYTE_BY_BYTE = tuple(bytes([byte]) for byte in ask(b"GET").replace(b"{path}", b"/"))


def put_path(part: bytes, path: bytes) -> bytes:
    """Return *part* as a request for *path*."""
    # The request that is a body gets longer, too.
    length = b"Content-Length: %d\r"
    return part.replace(length % len(PLAIN), length % len(PLAIN.replace(b"{path}", path))).replace(b"{path}", path)

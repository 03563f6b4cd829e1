"""Requests are answered as Hypercorn answers them, byte for byte, whatever the app does."""

import asyncio
import itertools
import logging
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from hypercorn.asyncio.tcp_server import TCPServer

from quart_tenants.server.protocols.connections import LimitedConnection
from quart_tenants.web.guards.framing import has_body
from tests.server.protocols.cases import (
    APPS,
    BYTE_BY_BYTE,
    FLEETING_APPS,
    ODD_REQUESTS,
    PLAIN,
    REQUESTS,
    STRICTER,
    ask,
    body,
    describe,
    put_path,
)
from tests.server.protocols.serving import DEADLINE, App, answer, end, send, serving, start
from tests.server.protocols.waiting import is_watched

pytestmark = pytest.mark.slow


class Talk(NamedTuple):
    """What was said.

    Attributes:
        answers: To which request, by which app; without their dates.
        plain: Which apps were asked by which request without a body.
        lines: Of the access log.
    """

    answers: dict[tuple[str, str], bytes]
    plain: set[tuple[str, str]]
    lines: list[str]


async def talk(
    connections: type[TCPServer],
    requests: Mapping[str, tuple[bytes, ...]],
    apps: Mapping[str, App],
    *,
    eof: bool = False,
    **settings: Any,
) -> Talk:
    """Let all *apps* answer all *requests*, each of them on a connection of its own."""
    said = Talk({}, set(), [])
    asked = dict(enumerate(itertools.product(apps, requests)))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        number = scope["path"].removeprefix("/")
        name, request = asked[int(number)] if number.isdigit() else next(iter(asked.values()))
        if is_watched(receive):
            said.plain.add((name, request))
        if name != "describes" and has_body(scope):
            # An answer that comes before the end of the body ends the connection, sooner or later.
            while (await receive()).get("more_body"):
                pass
        await apps[name](scope, receive, send)

    logger = logging.Logger(__name__)
    handler = logging.Handler()
    handler.emit = lambda record: said.lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    log = {"accesslog": logger, "access_log_format": '"%(R)s" %(s)s %(st)s %(b)s "%({x}o)s" "%({host}i)s" %(H)s'}
    async with serving(
        app, connections, **{"keep_alive_timeout": 1.0, "graceful_timeout": 0.3, **log, **settings}
    ) as served:
        answers = await asyncio.gather(
            *(
                send(served.port, *(put_path(part, b"/%d" % number) for part in requests[request]), eof=eof)
                for number, (_, request) in asked.items()
            )
        )
    for key, data in zip(asked.values(), answers, strict=True):
        said.answers[key] = re.sub(rb"\r\ndate: \w\w\w, [^\r]*", b"\r\ndate: today", data)
    said.lines.sort()
    return said


@pytest.mark.parametrize("name", REQUESTS)
async def test_answers_are_those_of_hypercorn(name: str) -> None:
    """Byte for byte, with the same lines in the access log, whatever the app does."""
    requests = {name: REQUESTS[name]}

    expected = await talk(TCPServer, requests, APPS)
    ours = await talk(LimitedConnection, requests, APPS)

    differing = {
        app: (answer, expected.answers[app]) for app, answer in ours.answers.items() if answer != expected.answers[app]
    }
    assert differing == {}
    assert ours.lines == expected.lines
    # Or it would prove nothing.
    assert name != "plain" or {app for app, _ in ours.plain} == set(APPS)


@pytest.mark.parametrize("settings", [{}, {"keep_alive_max_requests": 2}, {"h11_pass_raw_headers": True}], ids=str)
async def test_app_is_told_what_hypercorn_tells(settings: dict[str, Any]) -> None:
    """The scope and the body are the same, for odd requests, too."""
    requests = {**ODD_REQUESTS, "bytes": BYTE_BY_BYTE, "three": (PLAIN,) * 3, "three at once": (PLAIN * 3,)}
    # On a busy machine a request that comes byte by byte takes longer than the second after which others are closed.
    settings = {"keep_alive_timeout": 5.0} | settings

    expected = await talk(TCPServer, requests, {"describes": describe}, **settings)
    ours = await talk(LimitedConnection, requests, {"describes": describe}, **settings)

    refused = {request for _, request in ours.answers if ours.answers["describes", request].startswith(b"HTTP/1.1 4")}
    taken = {request for _, request in expected.answers if b"HTTP/1.1 200" in expected.answers["describes", request]}
    for key, data in ours.answers.items():
        assert data == expected.answers[key] or key[1] in STRICTER, key
    # We refuse what Hypercorn refuses, and no more than what is written here.
    assert refused & taken == STRICTER


async def test_headers_are_those_that_were_sent() -> None:
    """Also where the app changes them afterwards, or they can be read only once."""
    requests = {name: REQUESTS[name] for name in ("plain", "twice", "POST")}

    expected = await talk(TCPServer, requests, FLEETING_APPS)
    ours = await talk(LimitedConnection, requests, FLEETING_APPS)

    assert ours.answers == expected.answers


def hear_first(app: App) -> App:
    """Return *app*, which begins when it was told that its client says no more."""

    async def hear(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await app(scope, receive, send)

    return hear


async def test_client_that_says_no_more_is_answered_as_by_hypercorn() -> None:
    """One that has closed its half of the connection may still read."""
    requests = {"plain": REQUESTS["plain"]}
    apps = {name: hear_first(app) for name, app in APPS.items() if app is not describe}

    expected = await talk(TCPServer, requests, apps, eof=True)
    ours = await talk(LimitedConnection, requests, apps, eof=True)

    differing = {
        app: (data, expected.answers[app]) for app, data in ours.answers.items() if data != expected.answers[app]
    }
    assert differing == {}
    assert len(ours.plain) == len(apps)


def ask_at(path: bytes, *headers: bytes, method: bytes = b"GET", rest: bytes = b"") -> bytes:
    """Return a request for *path*."""
    return ask(method, *headers, rest=rest).replace(b"{path}", path)


async def test_connection_may_go_from_one_way_to_the_other() -> None:
    """Each request of a connection is read from where the one before has ended, whoever has read that."""
    inner = ask_at(b"/inner")
    parts = [
        ask_at(b"/1"),
        ask_at(b"/2", b"Content-Length: %d" % len(inner), method=b"POST", rest=inner),
        ask_at(b"/3"),
        ask_at(b"/4", b"Content-Length: %d" % len(inner), rest=inner),
        ask_at(b"/5"),
        ask_at(b"/6", b"Transfer-Encoding: chunked", rest=b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)),
        ask_at(b"/7"),
        ask_at(b"/8") + ask_at(b"/9"),
        ask_at(b"/10"),
        ask_at(b"/pieces"),
        ask_at(b"/11"),
        ask_at(b"/12", method=b"POST"),
        ask_at(b"/13"),
    ]
    asked: list[tuple[str, bool, bytes]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        text = b""
        while (message := await receive())["body"] or message["more_body"]:
            text += message["body"]
        asked.append((scope["path"], is_watched(receive), text))
        path = scope["path"].encode()
        await start(send, (b"content-length", b"%d" % len(path)))
        if path == b"/pieces":
            await send(body(path[:2], more_body=True))
            path = path[2:]
        await end(send, path)

    async with serving(app) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        async with asyncio.timeout(DEADLINE):
            for part in parts:
                writer.write(part)
                last = re.findall(rb" (/\w+) HTTP", part.replace(inner, b""))[-1]
                await reader.readuntil(b"\r\n\r\n" + last)
        writer.close()

    assert asked == [
        *(("/1", True, b""), ("/2", False, inner), ("/3", True, b""), ("/4", False, inner), ("/5", True, b"")),
        *(("/6", False, inner), ("/7", True, b""), ("/8", True, b""), ("/9", True, b""), ("/10", True, b"")),
        *(("/pieces", True, b""), ("/11", True, b""), ("/12", True, b""), ("/13", True, b"")),
    ]


@pytest.mark.parametrize("last", [ask(b"GET", b"Connection: close"), PLAIN.replace(b"/1.1", b"/1.0")])
async def test_nothing_is_answered_after_the_last_request(last: bytes) -> None:
    """Nor is anything that could be one."""
    asked = []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await answer(send)

    async with serving(app) as served:
        answers = await send(
            served.port,
            *(part.replace(b"{path}", path) for part, path in ((PLAIN, b"/1"), (last, b"/2"), (PLAIN, b"/3"))),
        )

    assert answers.count(b"HTTP/1.1 ") == 2
    assert asked == ["/1", "/2"]

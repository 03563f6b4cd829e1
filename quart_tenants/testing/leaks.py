"""Hunt for leaks: do as another tenant what one tenant's client did, and look for anything of the first tenant's."""

import re
import secrets
from collections.abc import Collection, Iterator
from typing import Any

from quart_tenants.testing.clients import Exchange, TenantClient

# Shorter texts are on many pages anyway.
_SHORTEST = 8
# A number, or a text that a program has made: an attacker may know it, so it is sent as it is.
_NAME_OF_A_ROW = re.compile(r"[0-9]+|[0-9a-f-]{16,}", re.IGNORECASE)
# What a program has made for one row or one visitor: 16 hexadecimal digits, or an UUID.
_MADE = re.compile(rb"(?<![0-9A-Za-z])(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{16,})(?![0-9A-Za-z])")


class LeakFoundError(AssertionError):
    """Something of one tenant's was in an answer to another."""


async def hunt_leaks(client: TenantClient, other: TenantClient, *, ignore: Collection[str] = ()) -> int:
    """Replay at *other*'s tenant what *client* did, and fail on any text of the first tenant's in an answer.

    Each request of *client* is made three times: with *other*'s own session, without any, and with the first tenant's
    cookies. Paths, and numbers and ids in queries and bodies, stay as they are, as an attacker would send them. Every
    other text of 8 characters or more is replaced by a random one, so that the other tenant does not write it itself.
    What is looked for are these texts, and ids of 16 hexadecimal digits or more that the first tenant has read.

    So let the test write distinctive texts, such as `"ada's secret plan"`, and read them again.

    Args:
        client: A client of the first tenant, after the test has used it.
        other: A client of another tenant. What it did before does not count.
        ignore: Texts that both tenants may read, such as those that the app itself writes.

    Returns:
        How many requests were made.

    Raises:
        LeakFoundError: A text of the first tenant's was in an answer. It says which, and where.
        ValueError: Both clients are of one tenant, or there is nothing to look for.
    """
    if client.tenant.id == other.tenant.id:
        raise ValueError("both clients are of one tenant; give the client of another one")
    exchanges = list(client.exchanges)
    hidden = {text: _scramble(text) for one in exchanges for text in _list_texts(one.options) if text not in ignore}
    wanted = {text.encode() for text in hidden}
    wanted |= {made for one in exchanges for made in _MADE.findall(one.body) if made.decode() not in ignore}
    if not wanted:
        raise ValueError(
            "there is nothing to look for: let the client send a text of 8 characters or more, or read an id"
        )
    stranger = TenantClient(other.app, other.tenant, other.host)
    thief = TenantClient(other.app, other.tenant, other.host)
    thief.cookie_jar = client.cookie_jar
    for one in exchanges:
        options = _replace(one.options, hidden)
        for who, name in (
            (other, "with its own cookies"),
            (stranger, "without cookies"),
            (thief, "with stolen cookies"),
        ):
            answer = await who.open(one.path, method=one.method, **options)
            body = await answer.get_data(as_text=False)
            text = b"\n".join([*(f"{name}: {value}".encode() for name, value in answer.headers.items()), body])
            _refuse(text, wanted, one, options, f"{other.tenant.slug} {name}")
    return 3 * len(exchanges)


def _refuse(text: bytes, wanted: Collection[bytes], one: Exchange, options: dict[str, Any], who: str) -> None:
    sent = f"{one.path} {options}".encode()
    for leak in wanted:
        # What the request itself says may be said in its answer.
        if leak in text and leak not in sent:
            raise LeakFoundError(
                f"{one.method} {one.path}, asked by {who}, shows {leak.decode(errors='replace')!r} of another tenant"
            )


def _list_texts(value: object) -> Iterator[str]:
    """List the texts in *value* that are not names of rows."""
    if isinstance(value, str):
        if len(value) >= _SHORTEST and not _NAME_OF_A_ROW.fullmatch(value):
            yield value
    elif isinstance(value, bytes):
        yield from _list_texts(value.decode(errors="replace"))
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "headers":
                yield from _list_texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _list_texts(item)


def _replace(value: Any, hidden: dict[str, str]) -> Any:
    if isinstance(value, str):
        return hidden.get(value, value)
    if isinstance(value, bytes):
        return _replace(value.decode(errors="replace"), hidden).encode()
    if isinstance(value, dict):
        return {key: item if key == "headers" else _replace(item, hidden) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replace(item, hidden) for item in value)
    return value


def _scramble(text: str) -> str:
    """Return a random text of the same length, and an e-mail address for one."""
    random = secrets.token_hex(len(text))[: len(text)]
    at = text.rfind("@")
    return random if at < 1 else f"{random[:at]}@{random[at + 1 :] or 'x'}.example"

"""Hunt for leaks: do as another tenant what one tenant's client did, and look for anything of the first tenant's."""

import html
import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

from markupsafe import escape

from quart_tenants.testing.clients import Exchange, TenantClient

# Shorter texts are on many pages anyway.
_SHORTEST = 8
_READING = ("GET", "HEAD")
# A number, or a text that a program has made: an attacker may know it, so it is sent as it is.
_NAME_OF_A_ROW = re.compile(r"[0-9]+|[0-9a-f-]{16,}", re.IGNORECASE)
# What a program has made for one row or one visitor: 16 hexadecimal digits, or an UUID.
_MADE = re.compile(rb"(?<![0-9A-Za-z])(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{16,})(?![0-9A-Za-z])")


class LeakFoundError(AssertionError):
    """Something of one tenant's was in an answer to another.

    Example:
        ```python
        with pytest.raises(LeakFoundError):
            await hunt_leaks(ada, eve)
        ```
    """


async def hunt_leaks(client: TenantClient, other: TenantClient, *, ignore: Collection[str] = ()) -> int:
    """Replay at *other*'s tenant what *client* did, and fail on any text of the first tenant's in an answer.

    First every request of *client* that only reads is made, before anything is written over, and then all requests
    are made in their order. Each is made three times: with *other*'s own session, without any, and with the first
    tenant's cookies. Paths, numbers and ids are sent as the first tenant sent them, because an attacker may know them.

    The texts of 8 characters or more that the first tenant has sent are what is looked for, as they are and as HTML,
    JSON and addresses write them. In the replayed requests random texts stand in their places. Ids of 16 hexadecimal
    digits or more that the first tenant has read are looked for, too.

    So let the test write distinctive texts, such as `"ada's secret plan"`, and read them again.

    Args:
        client: A client of the first tenant, after the test has used it.
        other: A client of another tenant. What it did before does not count.
        ignore: Texts that both tenants may read, such as those that the app itself writes.

    Returns:
        How many requests were made.

    Raises:
        LeakFoundError: A text of the first tenant's was in an answer. It says which, and where.
        TypeError: One of them is no client of `client_for`.
        ValueError: Both clients are of one tenant, or there is nothing to look for.

    Example:
        ```python
        async def test_nothing_leaks(ada: TenantClient, eve: TenantClient) -> None:
            await ada.post("/notes", json={"text": "ada's secret plan"})
            await ada.get("/notes")

            await hunt_leaks(ada, eve)
        ```
    """
    for given in (client, other):
        if not isinstance(given, TenantClient):
            raise TypeError(f"{type(given).__name__} knows no tenant: make both clients with client_for(tenant)")
    if client.tenant.id == other.tenant.id:
        raise ValueError("both clients are of one tenant; give the client of another one")
    exchanges = list(client.exchanges)
    hidden = {text: _scramble(text) for one in exchanges for text in _list_texts(one.options) if text not in ignore}
    wanted = {text: _write_forms(text) for text in hidden}
    made = {found.decode() for one in exchanges for found in _MADE.findall(one.body)}
    wanted |= {text: {text.encode()} for text in made.difference(ignore)}
    if not wanted:
        raise ValueError(
            "there is nothing to look for: let the client send a text of 8 characters or more, or read an id"
        )
    stranger = TenantClient(other.app, other.tenant, other.host)
    thief = TenantClient(other.app, other.tenant, other.host)
    thief.cookie_jar = client.cookie_jar
    # A request that writes may write over what a request that reads would have shown.
    replayed = [one for one in exchanges if one.method in _READING] + exchanges
    for one in replayed:
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
    return 3 * len(replayed)


def _refuse(
    text: bytes, wanted: Mapping[str, Collection[bytes]], one: Exchange, options: dict[str, Any], who: str
) -> None:
    sent = f"{one.path} {options}"
    for leak, forms in wanted.items():
        # What the request itself says may be said in its answer.
        if leak not in sent and any(form in text for form in forms):
            raise LeakFoundError(
                f"{one.method} {one.path}, asked by {who}, shows {leak!r} of another tenant; "
                "if every tenant may read that, give it in ignore="
            )


def _write_forms(text: str) -> set[bytes]:
    """Return *text* as it may stand in an answer: as it is, in HTML, in JSON and in an address."""
    json_forms = {json.dumps(text, ensure_ascii=plain)[1:-1] for plain in (True, False)}
    forms = {text, html.escape(text), str(escape(text)), quote(text), quote_plus(text)} | json_forms
    return {form.encode() for form in forms}


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

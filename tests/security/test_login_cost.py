"""Promise: a login costs the same whoever is named in it, so that time tells nobody which users there are."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
from quart import Quart

from quart_tenants.app import create_app
from quart_tenants.app.passwords import PasswordCheck, PasswordHasher
from tests.support.processes import SECRET_KEY

VERIFY_BOTH = ["verify argon2 m=19456,t=2,p=1", "verify pbkdf2_sha256 29000"]
# "old" has the seed's hash, "new" one of today, "suspended" that of today with the mark of `user suspend`.
USERS = """
INSERT INTO company1.app_user (username, password)
SELECT 'old', password FROM company1.app_user WHERE username = 'user_1'
UNION ALL VALUES ('new', $1), ('suspended', '!' || $1)
"""
_COST = re.compile(r"m=\d+,t=\d+,p=\d+|(?<=^\$pbkdf2-sha256\$)\d+")


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[Quart]:
    """The reference app in this process, with users of each kind at company1. user_2 is company2's."""
    app = create_app({"TENANTS_DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY})
    async with app.test_app():
        connection = await asyncpg.connect(database_url)
        await connection.execute(USERS, await get_hasher(app).hash("foo"))
        await connection.close()
        yield app


@pytest.fixture
def work(app: Quart, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is computed by the hashers below us: of which scheme, and at which cost."""
    work: list[str] = []
    hasher = get_hasher(app)

    def record(name: str, scheme: str, compute: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(secret: str, *stored: str) -> Any:
            computed = compute(secret, *stored)
            cost = _COST.search(stored[0] if stored else computed)
            work.append(f"{name} {scheme} {cost[0] if cost else 'unknown'}")
            return computed

        return recorded

    for scheme in hasher._schemes:
        handler = hasher._context.handler(scheme)
        monkeypatch.setattr(handler, "verify", record("verify", scheme, handler.verify))
        monkeypatch.setattr(handler, "hash", record("hash", scheme, handler.hash))
    return work


def get_hasher(app: Quart) -> PasswordHasher:
    """Return what checks the passwords of *app*."""
    hasher = app.extensions["password_hasher"]
    assert isinstance(hasher, PasswordHasher)
    return hasher


async def log_in(app: Quart, username: str, password: str) -> tuple[int, bytes]:
    """Return the status and the body of the answer."""
    answer = await app.test_client(use_cookies=False).post(
        "/login", headers={"Host": "company1.localhost"}, json={"uname": username, "passwd": password}
    )
    return answer.status_code, await answer.get_data(as_text=False)


async def test_login_computes_the_same_whoever_is_named(app: Quart, work: list[str]) -> None:
    """Each scheme once, at one cost: for right and wrong passwords, for nobody, the suspended, users of others."""
    answers = {}
    for username, password in [
        ("new", "foo"),
        ("new", "wrong"),
        ("old", "wrong"),
        ("nobody", "foo"),
        ("suspended", "foo"),
        ("suspended", "wrong"),
        ("user_2", "foo"),
        ("", ""),
        ("new\0", "foo"),
        ("\ud800", "foo"),
    ]:
        work.clear()
        answers[username, password] = await log_in(app, username, password)
        assert work == VERIFY_BOTH, (username, password)

    assert answers.pop(("new", "foo"))[0] == 200
    assert len(set(answers.values())) == 1


async def test_first_login_with_an_old_hash_computes_the_new_one(app: Quart, work: list[str]) -> None:
    """One hash more, after the right password only, so it tells nobody anything; from then on no more."""
    works = []
    for _ in range(2):
        work.clear()
        assert (await log_in(app, "old", "foo"))[0] == 200
        works.append(list(work))

    assert works == [[*VERIFY_BOTH, "hash argon2 m=19456,t=2,p=1"], VERIFY_BOTH]


async def test_login_that_answers_early_differs(app: Quart, work: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a login that checks a password only where there is a user tells who is one."""
    hasher = get_hasher(app)

    async def check_naively(password: str, stored: str | None) -> PasswordCheck:
        matched = stored is not None and hasher._context.identify(stored) is not None
        return PasswordCheck(matched and await asyncio.to_thread(hasher._context.verify, password, stored), None)

    monkeypatch.setattr(hasher, "check", check_naively)
    works = {}
    for username in ("new", "old", "nobody", "suspended"):
        work.clear()
        await log_in(app, username, "wrong")
        works[username] = tuple(work)

    assert works == {"new": (VERIFY_BOTH[0],), "old": (VERIFY_BOTH[1],), "nobody": (), "suspended": ()}

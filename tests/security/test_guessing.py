"""Promise: who guesses passwords is slowed down at all workers together, and nobody else is."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import httpx
import pytest
from quart import Quart

from quart_tenants.app import create_app
from quart_tenants.testing.databases import new_database_between_loops
from tests.app.test_passwords import Spy, held, watch
from tests.support.databases import execute
from tests.support.patience import DEADLINE
from tests.support.processes import QUICK_PASSWORDS, SECRET_KEY, Server, run_server

pytestmark = pytest.mark.slow

ATTEMPTS = 5
ATTEMPTS_PER_ADDRESS = 6
RIGHT = {"uname": "user_1", "passwd": "foo"}
WRONG = {"uname": "user_1", "passwd": "wrong"}
LIMITS = QUICK_PASSWORDS | {
    "QUART_TENANTS_LOGIN_ATTEMPTS": str(ATTEMPTS),
    "QUART_TENANTS_LOGIN_ATTEMPTS_PER_ADDRESS": str(ATTEMPTS_PER_ADDRESS),
}
BURST = 200
# Nothing but the limit of guesses refuses anybody in a burst.
ROOM = {
    "QUART_TENANTS_PASSWORD_HASH_QUEUE": "10000",
    "QUART_TENANTS_TENANT_POOL_QUEUE": "10000",
    "QUART_TENANTS_ACQUIRE_TIMEOUT": "60",
    "QUART_TENANTS_REQUEST_TIMEOUT": "120",
}


@pytest.fixture(scope="module")
def url(server_url: str, template: str) -> Iterator[str]:
    """The URL of a database of the module's own, whose tests use one tenant each."""
    with new_database_between_loops(server_url, template) as url:
        yield url


@pytest.fixture(scope="module")
def behind_proxy(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that believes what the proxies of this machine forward."""
    settings = LIMITS | ROOM | {"QUART_TENANTS_TRUSTED_PROXIES": "127.0.0.0/8"}
    with run_server(url, tmp_path_factory.mktemp("proxied"), **settings) as server:
        yield server


@pytest.fixture(scope="module")
def server(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Another server on the same database, which believes nobody."""
    with run_server(url, tmp_path_factory.mktemp("direct"), **LIMITS, **ROOM) as server:
        yield server


async def log_in(client: httpx.AsyncClient, fields: dict[str, str], address: str | None = None) -> httpx.Response:
    """Try to log in, with *address* in the header of proxies."""
    return await client.post("/login", data=fields, headers={"X-Forwarded-For": address} if address else {})


async def wait_for_failures(database_url: str, number: int) -> None:
    """Return when so many failures are counted: a visitor who is gone does not wait for that."""
    connection = await asyncpg.connect(database_url)
    try:
        async with asyncio.timeout(DEADLINE):
            while await connection.fetchval("SELECT max(failures) FROM quart_tenants.failed_logins") != number:
                await asyncio.sleep(0)
    finally:
        await connection.close()


async def lengthen_waits(url: str) -> None:
    """Let all waits last a minute yet: no test is too slow for them."""
    await execute(
        url,
        "UPDATE quart_tenants.failed_logins SET wait_until = now() + interval '1 minute' WHERE wait_until > failed_at",
    )


def assert_too_many(answer: httpx.Response) -> None:
    """Assert that it is 429 with the time to wait."""
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_logins")
    assert 0 < int(answer.headers["retry-after"]) <= 60


async def test_guesser_waits_at_every_worker_and_nobody_else_does(
    url: str, behind_proxy: Server, server: Server
) -> None:
    """Five guesses, wherever each is made; then 429, and the right password is answered in the same way."""
    await execute(
        url, "INSERT INTO company1.app_user (username, password) SELECT 'ann', password FROM company1.app_user"
    )
    async with behind_proxy.tenant("company1") as one, server.tenant("company1") as two:
        guesses = [await log_in(one, WRONG, f"192.0.2.{number}") for number in range(ATTEMPTS - 1)]
        guesses.append(await log_in(two, WRONG))
        await lengthen_waits(url)
        refused = [await log_in(client, fields, "192.0.2.99") for client in (one, two) for fields in (WRONG, RIGHT)]
        other_user = await log_in(two, RIGHT | {"uname": "ann"})
    async with server.tenant("company2") as client:
        other_tenant = await log_in(client, RIGHT | {"uname": "user_2"})

    assert [answer.status_code for answer in guesses] == [401] * ATTEMPTS
    for answer in refused:
        assert_too_many(answer)
        assert "set-cookie" not in answer.headers
    assert {tuple(answer.headers) for answer in refused} == {tuple(refused[0].headers)}
    assert other_user.status_code == other_tenant.status_code == 200


async def test_strangers_forwarded_address_is_not_believed(url: str, behind_proxy: Server, server: Server) -> None:
    """Who claims another address for each guess is still one; only a trusted proxy's own entry counts."""

    async def guess(at: Server, tenant: str, forwarded: str) -> list[int]:
        statuses = []
        async with at.tenant(tenant) as client:
            for number in range(ATTEMPTS_PER_ADDRESS + 2):
                answer = await log_in(client, {"uname": f"u{number}", "passwd": "x"}, forwarded.format(number))
                statuses.append(answer.status_code)
                await lengthen_waits(url)
        return statuses

    slowed = [401] * ATTEMPTS_PER_ADDRESS + [429] * 2
    assert await guess(server, "acme", "192.0.2.{}") == slowed
    assert await guess(behind_proxy, "globex", "192.0.2.{}") == [401] * (ATTEMPTS_PER_ADDRESS + 2)
    assert await guess(behind_proxy, "globex", "192.0.2.{}, 198.51.100.7") == slowed


async def burst(servers: list[Server]) -> Counter[str]:
    """Guess at one account many times at once; return how many answers had which code."""

    async def guess_at(server: Server) -> list[str]:
        async with server.tenant("company2") as client:
            answers = await asyncio.gather(
                *(
                    log_in(client, {"uname": "user_2", "passwd": f"guess {number}"}, f"203.0.113.{number}")
                    for number in range(BURST // len(servers))
                )
            )
        return [answer.json()["code"] for answer in answers]

    codes: Counter[str] = Counter()
    for found in await asyncio.gather(*(guess_at(server) for server in servers)):
        codes.update(found)
    return codes


async def test_burst_is_counted_too(database_url: str, tmp_path: Path) -> None:
    """Of 200 guesses at once at two workers each checks a few before the count shows; the rest are refused."""
    settings = LIMITS | ROOM | {"QUART_TENANTS_TRUSTED_PROXIES": "127.0.0.0/8"}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with (
        run_server(database_url, tmp_path / "one", **settings) as one,
        run_server(database_url, tmp_path / "two", **settings) as two,
    ):
        began = time.monotonic()
        codes = await burst([one, two])
        # The first wait is a second long, and the next ones are longer: on a slow machine they end within the burst.
        waits = int(time.monotonic() - began)

    checked = codes["invalid_credentials"]
    # All but the last of those that are free, and what each worker lets run at a time when that one is counted.
    assert ATTEMPTS <= checked <= ATTEMPTS - 1 + 2 * ATTEMPTS + waits
    assert codes == {"invalid_credentials": checked, "too_many_logins": BURST - checked}


async def test_burst_without_limits_is_checked(database_url: str, tmp_path: Path) -> None:
    """Negative control: with the limits at their maximum, each of the 200 guesses is checked."""
    with run_server(database_url, tmp_path, **QUICK_PASSWORDS, **ROOM) as server:
        codes = await burst([server])

    assert codes == {"invalid_credentials": BURST}


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[Quart]:
    """The reference app in this process, where hashes can be counted."""
    app = create_app(
        {"TENANTS_DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY, "TENANTS_LOGIN_ATTEMPTS": ATTEMPTS}
    )
    async with app.test_app():
        yield app


@pytest.fixture
def spy(app: Quart, monkeypatch: pytest.MonkeyPatch) -> Spy:
    """What counts the hashes."""
    return watch(app.extensions["password_hasher"], monkeypatch)


async def post(app: Quart, path: str, fields: dict[str, str], cookie: str = "") -> tuple[int, str]:
    """Return the status of the answer, and the cookie that it sets."""
    answer = await app.test_client(use_cookies=False).post(
        path, form=fields, headers={"Host": "company1.localhost", "Cookie": cookie}
    )
    return answer.status_code, answer.headers.get("Set-Cookie", "").partition(";")[0]


async def ask_data(app: Quart, cookie: str) -> int:
    """Return what the data's page answers to *cookie*."""
    client = app.test_client(use_cookies=False)
    answer = await client.get("/data", headers={"Host": "company1.localhost", "Cookie": cookie})
    return answer.status_code


async def test_no_hash_is_computed_for_who_has_to_wait(app: Quart, spy: Spy, database_url: str) -> None:
    """A refused guess, right or wrong, costs the worker nothing but a question to the database."""
    guesses = [await post(app, "/login", WRONG) for _ in range(ATTEMPTS)]
    await lengthen_waits(database_url)
    spy.verified.clear()

    refused = [await post(app, "/login", fields) for fields in (WRONG, RIGHT)]

    assert guesses == [(401, "")] * ATTEMPTS
    assert refused == [(429, "")] * 2
    assert spy.verified == spy.hashed == []


async def test_guesser_who_goes_away_early_is_counted(app: Quart, spy: Spy, database_url: str) -> None:
    """Closing the connection before the answer spares no guess: the work was done."""
    for guesses in range(1, ATTEMPTS + 1):
        client = app.test_client(use_cookies=False)
        with held(spy):
            async with client.request(
                "/login",
                method="POST",
                headers={"Host": "company1.localhost", "Content-Type": "application/x-www-form-urlencoded"},
            ) as connection:
                await connection.send(b"uname=user_1&passwd=wrong")
                await connection.send_complete()
                await spy.wait_for_begin()
                await connection.disconnect()
        await wait_for_failures(database_url, guesses)
        # The other scheme's, with which the check is at its end: the next guess must not be taken for begun.
        await spy.wait_for_begin()
    await lengthen_waits(database_url)

    assert (await post(app, "/login", RIGHT))[0] == 429


async def test_new_password_ends_the_other_sessions(app: Quart) -> None:
    """Who changes the password stays logged in, by a new session; all their others end, and the old one is wrong."""
    cookies = [(await post(app, "/login", RIGHT))[1] for _ in range(3)]

    status, new_cookie = await post(app, "/password", {"passwd": "foo", "new_passwd": "sesame"}, cookies[0])

    assert status == 200
    assert new_cookie not in ("", *cookies)
    # The feed's next look, which comes within a second by itself.
    await app.extensions["quart_tenants"].registry.refresh()
    assert await ask_data(app, new_cookie) == 200
    assert [await ask_data(app, cookie) for cookie in cookies] == [401] * 3
    assert (await post(app, "/login", RIGHT))[0] == 401
    assert (await post(app, "/login", RIGHT | {"passwd": "sesame"}))[0] == 200


async def test_old_password_cannot_be_guessed_either(app: Quart, spy: Spy, database_url: str) -> None:
    """Changing the password counts wrong old ones as the login does: a stolen session does not make guessing free."""
    _, cookie = await post(app, "/login", RIGHT)
    wrong = {"passwd": "wrong", "new_passwd": "sesame"}

    guesses = [(await post(app, "/password", wrong, cookie))[0] for _ in range(ATTEMPTS)]
    await lengthen_waits(database_url)
    spy.verified.clear()
    refused = [(await post(app, "/password", wrong | {"passwd": word}, cookie))[0] for word in ("wrong", "foo")]

    assert guesses == [401] * ATTEMPTS
    assert refused == [429, 429]
    assert (await post(app, "/login", RIGHT))[0] == 429
    assert spy.verified == []
    assert await ask_data(app, cookie) == 200


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"passwd": "foo"}, 400),
        ({"passwd": "foo", "new_passwd": ""}, 400),
        ({"passwd": "foo", "new_passwd": "a\0"}, 400),
        ({"passwd": "foo", "new_passwd": "x" * 4097}, 400),
        ({"new_passwd": "sesame"}, 401),
    ],
    ids=["missing", "empty", "NUL", "too long", "no old one"],
)
async def test_bad_new_password_changes_nothing(app: Quart, fields: dict[str, str], status: int) -> None:
    """What is refused leaves the old password and all sessions as they are."""
    _, cookie = await post(app, "/login", RIGHT)

    assert (await post(app, "/password", fields, cookie))[0] == status

    assert await ask_data(app, cookie) == 200
    assert (await post(app, "/login", RIGHT))[0] == 200


async def test_password_is_changed_by_who_is_logged_in(app: Quart) -> None:
    """Without a session the right password changes nothing."""
    assert (await post(app, "/password", {"passwd": "foo", "new_passwd": "sesame"}))[0] == 401

    assert (await post(app, "/login", RIGHT))[0] == 200


async def test_user_who_is_suspended_meanwhile_stays_so(app: Quart, spy: Spy, database_url: str) -> None:
    """A change of password that was under way when an administrator suspended the user does not undo that."""
    _, cookie = await post(app, "/login", RIGHT)
    while spy.begun.acquire(blocking=False):
        pass
    with held(spy):
        change = asyncio.create_task(post(app, "/password", {"passwd": "foo", "new_passwd": "sesame"}, cookie))
        await spy.wait_for_begin()
        await execute(database_url, "UPDATE company1.app_user SET password = '!' || password")

    assert (await change)[0] == 401
    assert [(await post(app, "/login", RIGHT | {"passwd": word}))[0] for word in ("foo", "sesame")] == [401, 401]

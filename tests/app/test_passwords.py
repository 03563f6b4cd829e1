"""Passwords: checked off the event loop, at the same cost whoever asks, a bounded number at a time."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from quart_tenants.app.passwords import MAX_PASSWORD_LENGTH, PasswordHasher
from quart_tenants.errors import HashQueueFullError, InvalidUserError, PasswordTooLongError
from quart_tenants.settings import Settings
from tests.support.patience import DEADLINE

pytestmark = pytest.mark.slow

SEED_HASH = "$pbkdf2-sha256$29000$5ry31vofg7CWkhJCSClFKA$i01NZ9cAJCAYlXQCY2AXmcmJfe8eD5vZMDOy0h8tH2U"
SEED_PASSWORD = "foo"


@dataclass
class Spy:
    """Counts the hashes that are computed, and may hold them up."""

    verified: list[str] = field(default_factory=list)
    hashed: list[str] = field(default_factory=list)
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go_on: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.go_on.set()

    def count(self, names: list[str], scheme: str, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Return *compute*, which writes *scheme* into *names* and waits until it may go on."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            names.append(scheme)
            self.begun.release()
            if not self.go_on.wait(DEADLINE):
                raise TimeoutError
            return compute(*args, **kwargs)

        return counted

    async def wait_for_begin(self) -> None:
        """Return when a computation has begun that no earlier call has counted."""
        assert await asyncio.to_thread(self.begun.acquire, timeout=DEADLINE)


def watch(hasher: PasswordHasher, patch: pytest.MonkeyPatch) -> Spy:
    """Put a spy around every passlib handler of *hasher*."""
    spy = Spy()
    for scheme in hasher._schemes:
        handler = hasher._context.handler(scheme)
        patch.setattr(handler, "verify", spy.count(spy.verified, scheme, handler.verify))
        patch.setattr(handler, "hash", spy.count(spy.hashed, scheme, handler.hash))
    return spy


async def let_tasks_begin() -> None:
    """Let the tasks just made run up to where they wait: one turn of the event loop."""
    await asyncio.sleep(0)


@contextlib.contextmanager
def held(spy: Spy) -> Iterator[None]:
    """Hold every computation up that begins inside the block."""
    spy.go_on.clear()
    try:
        yield
    finally:
        spy.go_on.set()


@contextlib.asynccontextmanager
async def open_hasher(**settings: Any) -> AsyncIterator[PasswordHasher]:
    """Lend a hasher that is warm."""
    hasher = PasswordHasher(Settings(**settings))
    await hasher.warm()
    try:
        yield hasher
    finally:
        await hasher.close()


@pytest.fixture
async def hasher() -> AsyncIterator[PasswordHasher]:
    """Lend a hasher with the default settings."""
    async with open_hasher() as hasher:
        yield hasher


@pytest.fixture
async def narrow_hasher() -> AsyncIterator[PasswordHasher]:
    """Lend a hasher with one thread and one place to wait."""
    async with open_hasher(password_hash_concurrency=1, password_hash_queue=1) as hasher:
        yield hasher


async def test_seeds_hash_is_verified_and_replaced(hasher: PasswordHasher) -> None:
    """A user of the seed logs in with the old hash and gets an argon2id hash of the same password."""
    first = await hasher.check(SEED_PASSWORD, SEED_HASH)
    assert first.replacement is not None
    second = await hasher.check(SEED_PASSWORD, first.replacement)

    assert first.matched
    assert first.replacement.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert second.matched


async def test_new_hash_is_argon2id_and_stays(hasher: PasswordHasher) -> None:
    """A new password gets an argon2id hash, which no login replaces."""
    stored = await hasher.hash("correct horse")
    check = await hasher.check("correct horse", stored)

    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert check.matched
    assert check.replacement is None


async def test_weaker_argon2_hash_is_replaced(hasher: PasswordHasher) -> None:
    """An argon2 hash of less cost than ours is replaced, too."""
    weak = hasher._context.handler("argon2").using(memory_cost=1024, time_cost=1).hash("correct horse")

    check = await hasher.check("correct horse", weak)

    assert check.replacement is not None
    assert "$m=19456,t=2,p=1$" in check.replacement


async def test_same_password_has_two_hashes(hasher: PasswordHasher) -> None:
    """Each hash has a salt of its own."""
    assert await hasher.hash("correct horse") != await hasher.hash("correct horse")


@pytest.mark.parametrize("password", ["", "Foo", "foo ", "fo", "foo\0", "\ud800", "x" * MAX_PASSWORD_LENGTH])
async def test_wrong_password_does_not_match(hasher: PasswordHasher, password: str) -> None:
    """Any other text is no match, nothing is replaced, and nothing breaks on it."""
    check = await hasher.check(password, SEED_HASH)

    assert not check.matched
    assert check.replacement is None


async def test_the_dummies_own_password_is_no_key(hasher: PasswordHasher) -> None:
    """Matching what stands in for a missing user is no match."""
    for stored in (None, "", SEED_HASH):
        check = await hasher.check("dummy", stored)
        assert not check.matched
        assert check.replacement is None


async def test_unknown_user_costs_what_a_wrong_password_costs(
    hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each accepted scheme is computed once, for a missing user as for either kind of hash."""
    new_hash = await hasher.hash(SEED_PASSWORD)
    spy = watch(hasher, monkeypatch)

    for stored in (None, "", SEED_HASH, new_hash, "garbage"):
        spy.verified.clear()
        await hasher.check("wrong", stored)
        assert spy.verified == ["argon2", "pbkdf2_sha256"], stored

    assert spy.hashed == []


async def test_dropped_scheme_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `pbkdf2_sha256` in the settings its hashes match no more, and a login costs one computation."""
    async with open_hasher(password_schemes=("argon2",)) as hasher:
        spy = watch(hasher, monkeypatch)

        check = await hasher.check(SEED_PASSWORD, SEED_HASH)

    assert not check.matched
    assert spy.verified == ["argon2"]


@pytest.mark.parametrize(
    "stored",
    [
        "garbage",
        "\0",
        "hash é",
        "$argon2id$garbage",
        "$argon2id$é",
        "$argon2id$v=19$m=8,t=1,p=1$AAAA$AAAA",
        "$argon2id$v=19$m=8,t=1,p=0$" + "A" * 22 + "$" + "A" * 43,
        "$argon2id$v=19$m=4294967295,t=1,p=1$" + "A" * 22 + "$" + "A" * 43,
        "$pbkdf2-sha256$0$a$b",
        "$pbkdf2-sha256$29000$$",
        "$pbkdf2-sha256$29000$é$é",
        "\ud800",
    ],
)
async def test_garbage_in_the_table_is_no_match(hasher: PasswordHasher, stored: str) -> None:
    """A stored hash that nobody can read belongs to nobody."""
    check = await hasher.check(SEED_PASSWORD, stored)

    assert not check.matched
    assert check.replacement is None


async def test_log_names_neither_hash_nor_password(hasher: PasswordHasher, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be checked is logged without what was to be checked."""
    with caplog.at_level(logging.DEBUG):
        await hasher.check("my secret", "$argon2id$my hash")
        await hasher.check("my secret \ud800", SEED_HASH)

    assert "a password could not be checked" in caplog.text
    assert "my secret" not in caplog.text
    assert "my hash" not in caplog.text


async def test_password_has_4096_characters_at_most(hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer one is refused before any work is done, whether it is checked or stored."""
    spy = watch(hasher, monkeypatch)

    with pytest.raises(PasswordTooLongError):
        await hasher.check("x" * (MAX_PASSWORD_LENGTH + 1), SEED_HASH)
    with pytest.raises(PasswordTooLongError):
        await hasher.hash("x" * (MAX_PASSWORD_LENGTH + 1))

    assert spy.verified == spy.hashed == []


async def test_password_of_4096_characters_works(hasher: PasswordHasher) -> None:
    """The limit itself is allowed, in characters and not in bytes."""
    password = "ü" * MAX_PASSWORD_LENGTH

    assert (await hasher.check(password, await hasher.hash(password))).matched


@pytest.mark.parametrize("character", ["\ud800", "\0"])
async def test_password_that_is_no_text_is_not_stored(hasher: PasswordHasher, character: str) -> None:
    """What nobody can type in again is refused, and the error does not repeat the password."""
    with pytest.raises(InvalidUserError) as caught:
        await hasher.hash(f"my secret {character}")

    assert "my secret" not in str(caught.value)


async def test_event_loop_is_free_while_a_password_is_checked(
    hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tasks go on: here one of them lets the computation go on, which a blocked loop never could."""
    spy = watch(hasher, monkeypatch)
    spy.go_on.clear()
    checking = asyncio.create_task(hasher.check(SEED_PASSWORD, SEED_HASH))

    await spy.wait_for_begin()
    assert not checking.done()
    spy.go_on.set()

    assert (await checking).matched


async def test_full_queue_is_refused_and_frees_up(
    narrow_hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the places to wait a login is refused at once; afterwards there is place again."""
    spy = watch(narrow_hasher, monkeypatch)
    with held(spy):
        accepted = [asyncio.create_task(narrow_hasher.check(SEED_PASSWORD, SEED_HASH)) for _ in range(2)]
        await spy.wait_for_begin()
        for _ in range(3):
            with pytest.raises(HashQueueFullError, match="2 passwords"):
                await narrow_hasher.check(SEED_PASSWORD, SEED_HASH)

    assert [check.matched for check in await asyncio.gather(*accepted)] == [True, True]
    assert (await narrow_hasher.check(SEED_PASSWORD, SEED_HASH)).matched


async def test_threads_are_counted(narrow_hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures tell what runs, waits, has ended and was refused, and for how long the threads were busy."""
    spy = watch(narrow_hasher, monkeypatch)
    before = narrow_hasher.count()
    with held(spy):
        accepted = [asyncio.create_task(narrow_hasher.check(SEED_PASSWORD, SEED_HASH)) for _ in range(2)]
        await spy.wait_for_begin()
        with pytest.raises(HashQueueFullError):
            await narrow_hasher.check(SEED_PASSWORD, SEED_HASH)
        during = narrow_hasher.count()
    await asyncio.gather(*accepted)
    after = narrow_hasher.count()

    states = [(c["password_checks_running"], c["password_checks_waiting"]) for c in (before, during, after)]
    assert states == [(0, 0), (1, 1), (0, 0)]
    # The dummies of the warm-up were one.
    ended = [(c["password_checks_total"], c["password_checks_refused_total"]) for c in (before, during, after)]
    assert ended == [(1, 0), (1, 1), (3, 1)]
    assert 0 < before["password_check_seconds_total"] < after["password_check_seconds_total"]


async def test_cancelled_waiter_leaves_the_queue(
    narrow_hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A visitor who went away while waiting gives the place to the next, and is never computed."""
    spy = watch(narrow_hasher, monkeypatch)
    with held(spy):
        running = asyncio.create_task(narrow_hasher.check(SEED_PASSWORD, None))
        await spy.wait_for_begin()
        waiting = asyncio.create_task(narrow_hasher.check(SEED_PASSWORD, None))
        await let_tasks_begin()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        next_one = asyncio.create_task(narrow_hasher.check(SEED_PASSWORD, None))
        await let_tasks_begin()
        assert not next_one.done()

    await asyncio.gather(running, next_one)
    assert spy.verified == ["argon2", "pbkdf2_sha256"] * 2


async def test_cancelled_check_keeps_its_place_until_it_is_finished(
    narrow_hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A computation that has begun cannot be stopped, so it counts: leaving early buys nobody more threads."""
    spy = watch(narrow_hasher, monkeypatch)
    with held(spy):
        running = asyncio.create_task(narrow_hasher.check(SEED_PASSWORD, None))
        await spy.wait_for_begin()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        waiting = asyncio.create_task(narrow_hasher.check(SEED_PASSWORD, SEED_HASH))
        await let_tasks_begin()
        with pytest.raises(HashQueueFullError):
            await narrow_hasher.check(SEED_PASSWORD, SEED_HASH)

    assert (await waiting).matched


async def test_first_checks_at_once_share_no_half_made_dummies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two first logins at the same time work also where nobody called `warm`."""
    hasher = PasswordHasher(Settings(password_hash_concurrency=2))
    last_scheme = hasher._context.handler("pbkdf2_sha256")
    make_hash = last_scheme.hash
    half_made, second_is_done = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hash_and_wait(password: str) -> str:
        """Hold the first login up when it has made one dummy of two."""
        if not half_made.is_set():
            loop.call_soon_threadsafe(half_made.set)
            second_is_done.wait(DEADLINE)
        made: str = make_hash(password)
        return made

    monkeypatch.setattr(last_scheme, "hash", hash_and_wait)
    try:
        first = asyncio.create_task(hasher.check(SEED_PASSWORD, SEED_HASH))
        await half_made.wait()
        second = await hasher.check(SEED_PASSWORD, None)
    finally:
        second_is_done.set()
        await hasher.close()

    assert not second.matched
    assert (await first).matched

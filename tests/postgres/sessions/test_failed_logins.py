"""Counting failed logins: a few are free, then each wait is twice the one before, and only those wait who are meant."""

from dataclasses import replace

import pytest

from quart_tenants.errors import TooManyLoginsError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.sessions.failed_logins import count_failure, count_success, look_at_login
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant

FREE = 3
FREE_PER_ADDRESS = 6
MAX_DELAY = 10.0  # seconds
KEY = "only-for-the-tests-0123456789"
HOME, ELSEWHERE, THIRD = "192.0.2.1", "198.51.100.7", "203.0.113.9"


class Guesser:
    """Tries to log in, with the steps that `login_attempt` takes."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings

    async def find_wait(self, tenant: Tenant, account: str, address: str | None = HOME) -> int:
        """Return how many seconds Retry-After would say; 0 if the login may be tried."""
        try:
            async with self.database.connection() as connection:
                await look_at_login(connection, tenant.id, account, address, KEY)
        except TooManyLoginsError as error:
            return error.retry_after or 0
        return 0

    async def fail(self, tenant: Tenant, account: str, address: str | None = HOME, *, times: int = 1) -> None:
        """Fail, after all waits so far."""
        for _ in range(times):
            await self.pass_time(tenant, seconds=MAX_DELAY)
            async with self.database.connection() as connection:
                count = await look_at_login(connection, tenant.id, account, address, KEY)
            async with self.database.connection() as connection:
                await count_failure(connection, count, self.settings)

    async def succeed(self, tenant: Tenant, account: str, address: str | None = HOME) -> None:
        """Log in."""
        async with self.database.connection() as connection:
            count = await look_at_login(connection, tenant.id, account, address, KEY)
            await count_success(connection, count)

    async def pass_time(self, tenant: Tenant, *, seconds: float) -> None:
        """Let the waits of a tenant end, or with many seconds the counting: as if it were later."""
        async with self.database.connection() as connection:
            await connection.execute(
                """
                UPDATE quart_tenants.failed_logins SET
                    failed_at = failed_at - make_interval(secs => $2),
                    wait_until = wait_until - make_interval(secs => $2),
                    forget_at = forget_at - make_interval(secs => $2)
                WHERE tenant_id = $1
                """,
                tenant.id,
                seconds,
            )

    async def count_rows(self) -> int:
        """Return how many counts are kept."""
        async with self.database.connection() as connection:
            rows: int = await connection.fetchval("SELECT count(*) FROM quart_tenants.failed_logins")
        return rows


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Limits that are soon reached. Time is shifted by `fail`, so what is forgotten needs much of it."""
    return replace(
        settings,
        login_attempts=FREE,
        login_attempts_per_address=FREE_PER_ADDRESS,
        login_max_delay=MAX_DELAY,
        login_forget_after=900.0,
    )


@pytest.fixture
def guesser(database: Database, settings: Settings) -> Guesser:
    """Whoever tries to log in."""
    return Guesser(database, settings)


async def test_waits_double_up_to_the_longest(guesser: Guesser, acme: Tenant) -> None:
    """The first failures are free; then Retry-After is 1 second, and twice as many each time, up to the maximum."""
    waits = []
    for _ in range(FREE + 5):
        await guesser.fail(acme, "ann")
        waits.append(await guesser.find_wait(acme, "ann"))

    assert waits[: FREE - 1] == [0] * (FREE - 1)
    assert waits[FREE - 1 :] == [1, 2, 4, 8, 10, 10]


async def test_wait_ends(guesser: Guesser, acme: Tenant) -> None:
    """Retry-After is what is left of the wait, rounded up; after it the next try may come, and is not free."""
    await guesser.fail(acme, "ann", times=FREE + 3)
    await guesser.pass_time(acme, seconds=2.5)
    left = await guesser.find_wait(acme, "ann")
    await guesser.pass_time(acme, seconds=6)

    assert left == 6
    assert await guesser.find_wait(acme, "ann") == 0
    await guesser.fail(acme, "ann")
    assert await guesser.find_wait(acme, "ann") == MAX_DELAY


async def test_counting_begins_anew_after_a_quiet_time(guesser: Guesser, acme: Tenant) -> None:
    """Who has not failed for `login_forget_after` has all free tries again."""
    await guesser.fail(acme, "ann", times=FREE + 3)
    await guesser.pass_time(acme, seconds=901)

    await guesser.fail(acme, "ann", times=FREE - 1)
    assert await guesser.find_wait(acme, "ann") == 0
    await guesser.fail(acme, "ann")
    assert await guesser.find_wait(acme, "ann") == 1


async def test_success_forgives_the_account(guesser: Guesser, acme: Tenant) -> None:
    """After the right password all tries are free again, here and from elsewhere."""
    await guesser.fail(acme, "ann", times=FREE - 1)
    await guesser.succeed(acme, "ann")

    for address in (HOME, ELSEWHERE):
        await guesser.fail(acme, "ann", address, times=FREE - 1)
        assert await guesser.find_wait(acme, "ann", address) == 0


async def test_only_the_account_waits(guesser: Guesser, acme: Tenant, globex: Tenant) -> None:
    """Other accounts, also of a name that only looks the same, and the same one at another tenant, are not slowed."""
    await guesser.fail(acme, "ann", times=FREE + 1)

    assert await guesser.find_wait(acme, "ann") > 0
    assert await guesser.find_wait(acme, "ann", ELSEWHERE) > 0
    assert await guesser.find_wait(globex, "ann") == 0
    for name in ("bob", "Ann", "ann ", "ann\0", "a\0nn", "", "ánn", "a\u0301nn", "\ud800ann"):
        assert await guesser.find_wait(acme, name) == 0, name


async def test_name_that_no_user_can_have_waits_like_any_other(guesser: Guesser, acme: Tenant) -> None:
    """Whatever stands in the user field is counted: empty, a NUL, half of a surrogate pair, 60,000 characters."""
    for number, name in enumerate(("", "\0", "\ud800", "x" * 60_000)):
        address = f"192.0.2.{number}"
        await guesser.fail(acme, name, address, times=FREE)

        assert await guesser.find_wait(acme, name, address) > 0


async def test_address_that_tries_many_accounts_waits(guesser: Guesser, acme: Tenant, globex: Tenant) -> None:
    """One guess at each of many accounts is counted by the address, which then waits with every other account."""
    for number in range(FREE_PER_ADDRESS):
        assert await guesser.find_wait(acme, "new") == 0
        await guesser.fail(acme, f"user {number}")

    assert await guesser.find_wait(acme, "new") == 1
    assert await guesser.find_wait(acme, "new", ELSEWHERE) == 0
    assert await guesser.find_wait(globex, "new") == 0


async def test_own_account_frees_no_address(guesser: Guesser, acme: Tenant) -> None:
    """Logging in to an own account between the guesses does not help the address."""
    for number in range(FREE_PER_ADDRESS):
        await guesser.fail(acme, f"user {number}")
        await guesser.pass_time(acme, seconds=MAX_DELAY)
        await guesser.succeed(acme, "mallory")

    await guesser.fail(acme, "user")
    assert await guesser.find_wait(acme, "new") > 0


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("2001:db8:1:2::1", "2001:0DB8:0001:0002::9", True),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("<local>", None, True),
    ],
)
async def test_address_is_a_network(
    guesser: Guesser, acme: Tenant, one: str, other: str | None, together: bool
) -> None:
    """Of IPv6 everybody in one /64 counts as one, for there one visitor has them all; of IPv4 each address does."""
    for number in range(FREE_PER_ADDRESS):
        await guesser.fail(acme, f"user {number}", one)

    assert (await guesser.find_wait(acme, "new", other) > 0) is together


async def test_known_address_is_not_held_up_by_strangers(guesser: Guesser, acme: Tenant) -> None:
    """Who has logged in from an address does so again, whatever strangers do to the account elsewhere."""
    await guesser.succeed(acme, "ann", HOME)
    await guesser.fail(acme, "ann", ELSEWHERE, times=FREE + 3)

    assert await guesser.find_wait(acme, "ann", HOME) == 0
    assert await guesser.find_wait(acme, "ann", THIRD) > 0
    await guesser.succeed(acme, "ann", HOME)
    # The strangers are not forgiven by that.
    assert await guesser.find_wait(acme, "ann", ELSEWHERE) > 0


async def test_known_account_is_not_held_up_by_its_neighbours(guesser: Guesser, acme: Tenant) -> None:
    """Behind one address of a whole office, who has logged in there before is not slowed by others who fail there."""
    await guesser.succeed(acme, "ann")
    for number in range(FREE_PER_ADDRESS + 3):
        await guesser.fail(acme, f"user {number}")

    assert await guesser.find_wait(acme, "new") > 0
    assert await guesser.find_wait(acme, "ann") == 0


async def test_typing_errors_of_known_accounts_hold_nobody_else_up(guesser: Guesser, acme: Tenant) -> None:
    """Failures of an account at its own address count there only: the account waits, the address does not."""
    for number in range(FREE_PER_ADDRESS + 3):
        await guesser.succeed(acme, f"user {number}")
        await guesser.fail(acme, f"user {number}", times=FREE)

        assert await guesser.find_wait(acme, f"user {number}") == 1
    assert await guesser.find_wait(acme, "new") == 0
    assert await guesser.find_wait(acme, "user 1", ELSEWHERE) == 0


async def test_address_is_known_for_thirty_days(guesser: Guesser, acme: Tenant) -> None:
    """Failures in between neither shorten that nor lengthen it; after it the account counts like a stranger's."""
    await guesser.succeed(acme, "ann")
    await guesser.pass_time(acme, seconds=29 * 86400)
    await guesser.fail(acme, "ann", ELSEWHERE, times=FREE + 3)
    known = await guesser.find_wait(acme, "ann")
    await guesser.pass_time(acme, seconds=86400)
    await guesser.fail(acme, "ann", ELSEWHERE, times=FREE + 3)

    assert known == 0
    assert await guesser.find_wait(acme, "ann") > 0


async def test_workers_count_together(guesser: Guesser, settings: Settings, acme: Tenant) -> None:
    """What fails at one worker counts at all of them."""
    async with await Database.open(settings, max_size=1) as another_database:
        another = Guesser(another_database, settings)
        await guesser.fail(acme, "ann", times=FREE - 1)
        await another.fail(acme, "ann")

        assert await guesser.find_wait(acme, "ann") == 1
        assert await another.find_wait(acme, "ann") == 1


async def test_failures_at_the_same_time_are_all_counted(guesser: Guesser, acme: Tenant) -> None:
    """Of ten tries that all looked before the first of them failed, each one counts."""
    async with guesser.database.connection() as connection:
        counts = [await look_at_login(connection, acme.id, "ann", HOME, KEY) for _ in range(10)]

    for count in counts:
        async with guesser.database.connection() as connection:
            await count_failure(connection, count, replace(guesser.settings, login_max_delay=86400.0))

    assert await guesser.find_wait(acme, "ann") == 2 ** (10 - FREE)


async def test_free_tries_at_the_same_time_do_not_wait_for_each_other(
    guesser: Guesser, database: Database, acme: Tenant
) -> None:
    """A block that began before somebody else failed, or logged in, sees that and need not wait for it."""
    async with database.connection() as early:
        await guesser.fail(acme, "ann")
        await guesser.succeed(acme, "bob")

        await look_at_login(early, acme.id, "ann", HOME, KEY)
        await look_at_login(early, acme.id, "bob", HOME, KEY)


async def test_clock_that_was_set_back_holds_nobody_up(guesser: Guesser, acme: Tenant) -> None:
    """Waits from before the server's clock went back an hour are not waited for, and the next failure counts anew."""
    await guesser.fail(acme, "ann", times=FREE + 1)
    await guesser.pass_time(acme, seconds=-3600)
    waited = await guesser.find_wait(acme, "ann")
    async with guesser.database.connection() as connection:
        count = await look_at_login(connection, acme.id, "ann", HOME, KEY)
        await count_failure(connection, count, guesser.settings)

    assert waited == 0
    assert 0 < await guesser.find_wait(acme, "ann") <= MAX_DELAY


async def test_table_tells_no_name_and_no_address(guesser: Guesser, acme: Tenant) -> None:
    """Neither a password in the wrong field nor an address can be read there, or be tried out without the key."""
    await guesser.fail(acme, "my secret")
    await guesser.succeed(acme, "ann")

    async with guesser.database.connection() as connection:
        rows = await connection.fetch("SELECT f::text AS row, counted FROM quart_tenants.failed_logins AS f")
        with_our_key = await look_at_login(connection, acme.id, "my secret", HOME, KEY)
        with_another = await look_at_login(connection, acme.id, "my secret", HOME, "another key")
    written = {row["counted"] for row in rows}
    assert len(rows) == 3
    for text in ("my secret", "ann", HOME):
        assert text not in str(rows)
        assert text.encode().hex() not in str(rows)
    assert {with_our_key.account, with_our_key.address} < written
    assert not {with_another.account, with_another.address, with_another.account_here} & written


async def test_old_rows_are_deleted(
    guesser: Guesser, acme: Tenant, globex: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Now and then a failure deletes what serves nobody any more, whichever tenant's, and nothing else."""
    for number in range(5):
        await guesser.fail(acme, f"user {number}", f"192.0.2.{number}")
    await guesser.pass_time(acme, seconds=1000)
    await guesser.succeed(acme, "ann")
    monkeypatch.setattr("random.random", lambda: 0.0)

    await guesser.fail(globex, "bob")

    assert await guesser.count_rows() == 3


async def test_deleting_waits_for_nobody(
    guesser: Guesser, acme: Tenant, globex: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that somebody counts on at the moment is left: two who delete could else wait for each other for ever."""
    await guesser.fail(acme, "ann")
    await guesser.pass_time(acme, seconds=1000)
    monkeypatch.setattr("random.random", lambda: 0.0)
    async with guesser.database.connection() as connection:
        await connection.execute("SELECT FROM quart_tenants.failed_logins WHERE tenant_id = $1 FOR UPDATE", acme.id)

        await guesser.fail(globex, "bob")

    assert await guesser.count_rows() == 4

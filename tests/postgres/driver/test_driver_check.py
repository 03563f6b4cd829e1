"""An asyncpg whose inside is another: blocks are plain, right and safe, and one line in the log says so."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from quart_tenants.postgres.driver import opening
from quart_tenants.postgres.driver.fast import driver_check
from quart_tenants.postgres.driver.fast.fast_connection import FastConnection
from quart_tenants.postgres.driver.fast.packets import PacketTransport
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant
from tests.isolation.probes import LEAVE_TRACES, find_traces
from tests.support.web_lender import WebLender

ADD = "INSERT INTO company_data (description) VALUES ($1)"
READ = "SELECT description FROM company_data"


def _lack_a_name(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(driver_check._CONNECTION_METHODS, "_execute_somehow", ())


def _take_another_parameter(patch: pytest.MonkeyPatch) -> None:
    async def execute(self: Any, query: str, arguments: Any, **options: Any) -> None:
        raise NotImplementedError

    patch.setitem(driver_check._CONNECTION_METHODS, "_execute", ("query", "arguments"))
    patch.setattr(FastConnection, "_execute", execute)


def _send_no_commit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PacketTransport, "put_before_sync", lambda *_: None)


def _send_no_begin(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PacketTransport, "put_ahead", lambda *_: None)


def _give_no_transport(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(opening, "PacketLoop", _break)


def _break(*_: object) -> None:
    raise AttributeError("create_connection")


STRANGE: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a name is missing": _lack_a_name,
    "a signature differs": _take_another_parameter,
    "a message is not sent with its statement": _send_no_commit,
    "a message does not go ahead": _send_no_begin,
    "connecting works in another way": _give_no_transport,
}


@pytest.mark.parametrize("difference", STRANGE)
async def test_strange_asyncpg_is_used_plainly(
    settings: Settings,
    acme: Tenant,
    globex: Tenant,
    difference: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever differs, each tenant sees its own rows and no trace, and the log has one line for all pools."""
    monkeypatch.setattr(opening, "_told", set())
    STRANGE[difference](monkeypatch)

    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            async with await WebLender.open(settings, max_size=1) as database:
                for tenant in (acme, globex, acme):
                    async with database.tenant_connection(tenant) as connection:
                        assert not connection._con.is_fast  # type: ignore[attr-defined]
                        login = await connection.fetchval("SELECT session_user")
                        assert await find_traces(connection, tenant, login) == {}
                        await connection.execute(ADD, tenant.slug)
                        seen = {row["description"] for row in await connection.fetch(READ)}
                        assert seen == {tenant.slug}
                        async with connection.transaction():
                            await connection.execute(LEAVE_TRACES)

    assert len([record for record in caplog.records if "not as expected" in record.getMessage()]) == 1


async def test_known_asyncpg_is_used_fast(
    settings: Settings, acme: Tenant, plain_driver: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Negative control: the asyncpg of this environment passes, and nothing is logged."""
    async with (
        await WebLender.open(settings, max_size=1) as database,
        database.tenant_connection(acme) as connection,
    ):
        assert connection._con.is_fast is not plain_driver  # type: ignore[attr-defined]

    assert caplog.records == []


async def test_plain_mode_can_be_forced(settings: Settings, acme: Tenant, caplog: pytest.LogCaptureFixture) -> None:
    """`TENANTS_DRIVER_MODE=plain` asks for it, and the log says nothing."""
    forced = replace(settings, driver_mode="plain")
    async with (
        await WebLender.open(forced, max_size=1) as database,
        database.tenant_connection(acme) as connection,
    ):
        assert not connection._con.is_fast  # type: ignore[attr-defined]
        assert await connection.fetch(READ) == []

    assert caplog.records == []


@pytest.mark.parametrize("mode", ["auto", "plain"])
async def test_prepared_statement_is_named_and_ends_with_its_block(settings: Settings, acme: Tenant, mode: str) -> None:
    """`prepare()` makes a statement that the server parses once, refuses clearly once outdated, and then forgets."""
    count = "SELECT count(*) FROM pg_prepared_statements WHERE name = $1"
    async with await WebLender.open(replace(settings, driver_mode=mode), max_size=1) as database:
        with pytest.raises(asyncpg.InvalidCachedStatementError):
            async with database.tenant_connection(acme) as connection:
                await connection.execute(ADD, "x")
                statement = await connection.prepare("SELECT * FROM company_data")
                name = statement.get_name()
                assert await connection.fetchval(count, name) == 1
                assert len(await statement.fetch()) == len(await statement.fetch()) == 1
                await connection.execute("ALTER TABLE company_data ADD COLUMN more text")
                await statement.fetch()

        async with database.tenant_connection(acme) as connection:
            assert await connection.fetchval(count, name) == 0

"""Run `quart-tenants` in this process, and look at what it left."""

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import pytest

from quart_tenants.app.cli import main
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import list_tenants
from quart_tenants.settings import Settings
from tests.support.databases import REFERENCE_FILES

T = TypeVar("T")

NO_TERMINAL = "there is no terminal"


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status, and what it wrote."""

    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


def make_run(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs `quart-tenants` on *url*, with *stdin* as its input and no terminal."""
    monkeypatch.setenv("QUART_TENANTS_DATABASE_URL", url)
    # Without audit lines, which would stand among what a command says.
    monkeypatch.setenv("QUART_TENANTS_AUDIT", "false")

    def run(*arguments: str, stdin: bytes = b"") -> Outcome:
        # As Python itself opens it where the locale is C or C.UTF-8.
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8", "surrogateescape"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main.main(list(arguments), prog_name="quart-tenants")
        out, err = capsys.readouterr()
        return Outcome(caught.value.code if isinstance(caught.value.code, int) else 1, out, err)

    return run


def ask(database_url: str, question: Callable[[Database], Awaitable[T]]) -> T:
    """Return what *question* answers about the database."""

    async def open_and_ask() -> T:
        async with await Database.open(
            Settings(migrations_dir=REFERENCE_FILES, database_url=database_url), max_size=1
        ) as database:
            return await question(database)

    return asyncio.run(open_and_ask())


def find_slugs(database_url: str) -> list[str]:
    """Return the slugs of all tenants."""
    return [tenant.slug for tenant in ask(database_url, list_tenants)]


def execute(database_url: str, statement: str) -> None:
    """Run one statement."""

    async def run_statement(database: Database) -> None:
        async with database.connection() as connection:
            await connection.execute(statement)

    ask(database_url, run_statement)


def assert_refused(outcome: Outcome, *words: str) -> None:
    """Assert that a command ended with status 1, one line on stderr that has all *words*, and no result."""
    assert outcome.status == 1, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("Error: ")
    assert outcome.err.count("\n") == 1
    for word in words:
        assert word in outcome.err


def assert_misused(outcome: Outcome, *words: str) -> None:
    """Assert that a command ended with status 2 and a hint on stderr that has all *words*."""
    assert outcome.status == 2, outcome
    assert outcome.out == ""
    assert "Usage: quart-tenants" in outcome.err
    for word in words:
        assert word in outcome.err

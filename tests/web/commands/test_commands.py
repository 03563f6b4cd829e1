"""The operators' commands in this process: what each accepts, what it refuses and how it says so."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from passlib.hash import argon2

from quart_tenants.app.cli import main
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.migrations.migration_files import get_tenant_migrations
from quart_tenants.postgres.registry.registry_tables import list_tenants
from quart_tenants.settings import Settings
from quart_tenants.web.commands.group import tenant_commands
from tests.support.databases import BREAKING_REGISTRY, NEWER_REGISTRY, REFERENCE_FILES
from tests.web.commands.runs import NO_TERMINAL, Outcome, Run, ask, assert_misused, assert_refused, execute

pytestmark = pytest.mark.slow

LIST_USERS = "SELECT username, password FROM app_user ORDER BY id"
OLD_SCHEMA = 'CREATE SCHEMA "we=ird Co" CREATE TABLE members (name text)'


# All commands


def walk(command: click.Command, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """Yield the path and the help of *command* and of all below it."""
    context = click.Context(command, info_name=command.name, parent=parent, **command.context_settings)
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            yield from walk(command.commands[name], context)


@pytest.mark.parametrize("group", [main, tenant_commands()], ids=["quart-tenants", "quart tenants"])
def test_help_fits_80_columns(group: click.Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every help text fits a terminal of 80 columns, and stays so narrow on a wider one."""
    for columns in ("80", "300"):
        monkeypatch.setenv("COLUMNS", columns)
        too_wide = [(path, line) for path, text in walk(group) for line in text.splitlines() if len(line) > 80]
        assert too_wide == []


@pytest.mark.parametrize("group", [main, tenant_commands()], ids=["quart-tenants", "quart tenants"])
def test_every_command_says_what_it_does(group: click.Group) -> None:
    """Each command has a help text and a summary that is not cut off, its options included."""
    for path, text in walk(group):
        assert text.splitlines()[2].strip(), path
    for command in group.commands.values():
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None), parameter


def test_unknown_command_is_a_usage_error(run_in_vain: Run) -> None:
    """A misspelt command ends with status 2."""
    assert_misused(run_in_vain("crate", "newco"), "No such command 'crate'")


def test_missing_database_url_names_the_variable(run_in_vain: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a database every command says which variable to set."""
    monkeypatch.delenv("QUART_TENANTS_DATABASE_URL")

    for command in (["init"], ["create", "newco"], ["adopt", "newco"], ["list"], ["drop", "acme", "--yes"]):
        assert_refused(
            run_in_vain(*command), "QUART_TENANTS_DATABASE_URL", "postgresql://user:password@host:5432/database"
        )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("QUART_TENANTS_POOL_MAX_SIZE", "many", ("TENANTS_POOL_MAX_SIZE is 'many'", "from 1 to 1000")),
        ("QUART_TENANTS_POOL_MAX_SIZE", "true", ("TENANTS_POOL_MAX_SIZE is True", "from 1 to 1000")),
        ("QUART_TENANTS_DOMAYN", "example.com", ("TENANTS_DOMAYN is no setting", "did you mean TENANTS_DOMAIN?")),
        ("QUART_TENANTS_DATABASE_URL", "mysql://me:sesame@host/x", ("TENANTS_DATABASE_URL must be a URL",)),
        (
            "QUART_TENANTS_DATABASE_URL",
            "postgresql://me@/x?host=/nonexistent",
            ("is it running", "DATABASE_URL right, with the files that it names?"),
        ),
    ],
)
def test_wrong_setting_is_one_line(
    run_in_vain: Run, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: tuple[str, ...]
) -> None:
    """A wrong setting ends a command with its name and the remedy, and without any password."""
    monkeypatch.setenv(name, value)

    outcome = run_in_vain("list")

    assert_refused(outcome, *words)
    assert "sesame" not in outcome.err


def test_settings_are_read_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's `QUART_TENANTS_*` are the settings of the commands."""
    monkeypatch.setenv("QUART_TENANTS_DOMAIN", "Example.com")
    monkeypatch.setenv("QUART_TENANTS_RESERVED_SLUGS", "globex2")

    assert run("create", "newco").out == "created newco (schema newco, at newco.example.com)\n"
    assert_refused(run("create", "globex2"), "TENANTS_RESERVED_SLUGS")


def test_what_postgresql_refuses_is_one_line(run: Run, database_url: str) -> None:
    """An error of PostgreSQL itself, here a missing table, is a line and no traceback."""
    execute(database_url, OLD_SCHEMA)
    assert run("adopt", "weird=we=ird Co").status == 0

    assert_refused(
        run("user", "add", "weird", "ann", "--password-stdin", stdin=b"foo"),
        'the database refused a statement: relation "app_user" does not exist',
    )


# init


def test_init_makes_the_registry_once(run: Run, empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time it says how many migrations ran; the second that there was nothing to do."""
    monkeypatch.setenv("QUART_TENANTS_DATABASE_URL", empty_database_url)
    assert_refused(run("list"), "run quart-tenants init")

    assert run("init") == Outcome(0, "registry ready (7 migrations applied)\n", "")
    assert run("init") == Outcome(0, "registry is up to date\n", "")


def test_old_program_refuses_a_newer_registry(run: Run, database_url: str) -> None:
    """After `init` of a newer program, `init` and the other commands say what to do, and change nothing."""
    execute(database_url, NEWER_REGISTRY)
    execute(database_url, BREAKING_REGISTRY)

    for command in (["init"], ["list"], ["create", "newco"], ["drop", "acme", "--yes"], ["migrate"], ["status"]):
        outcome = run(*command)

        assert (outcome.status, outcome.out) == (1, "")
        assert "install the newer program, and restart" in outcome.err


# create


def test_create_names_the_customer(run: Run, database_url: str) -> None:
    """`--name` is what people call the customer; without it that is the slug."""
    assert run("create", "newco", "--name", "New Co") == Outcome(
        0, "created newco (schema newco, at newco.localhost)\n", ""
    )
    assert run("create", "plain").status == 0

    assert {"newco": "New Co", "plain": "plain"}.items() <= {
        tenant.slug: tenant.name for tenant in ask(database_url, list_tenants)
    }.items()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["New"], ("'New' cannot be a tenant", "use 1 to 63 of a-z, 0-9 and -")),
        ([""], ("'' cannot be a tenant",)),
        (["public"], ("the name is reserved",)),
        (["x';--"], ("cannot be a tenant",)),
        (["xn--bcher-kva"], ("punycode",)),
        (["www"], ("reserved by TENANTS_RESERVED_SLUGS",)),
        (["acme"], ("tenant 'acme' exists already (schema acme)",)),
        (["newco", "--name", ""], ("cannot be a tenant's name", "1 to 200 printable characters")),
        (["newco", "--name", "New\nCo"], ("cannot be a tenant's name",)),
        (["newco", "--name", "\udcff"], ("cannot be a tenant's name",)),
    ],
)
def test_create_refuses(run_in_vain: Run, arguments: list[str], words: tuple[str, ...]) -> None:
    """A name that cannot be a tenant's is refused with the reason, and makes none."""
    assert_refused(run_in_vain("create", *arguments), *words)


def test_create_names_the_failing_migration(run_in_vain: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A migration that fails is named with PostgreSQL's reason, and makes no tenant."""
    (first,) = get_tenant_migrations(Settings(migrations_dir=REFERENCE_FILES))
    (tmp_path / first.name).write_text(first.sql, encoding="utf-8")
    (tmp_path / "0002_broken.sql").write_text("CREATE TABLE orders (id no_such_type)")
    monkeypatch.setenv("QUART_TENANTS_MIGRATIONS_DIR", str(tmp_path))

    assert_refused(
        run_in_vain("create", "newco"), "0002_broken.sql", "rolled back", 'type "no_such_type" does not exist'
    )


@pytest.mark.parametrize("arguments", [[], ["newco", "another"], ["newco", "--nome", "x"]])
def test_create_needs_one_slug(run_in_vain: Run, arguments: list[str]) -> None:
    """A command typed wrong ends with status 2."""
    assert_misused(run_in_vain("create", *arguments))


# adopt


def test_adopt_takes_slug_and_schema_apart_at_the_first_sign(run: Run, database_url: str) -> None:
    """A schema may have blanks, capitals and an equals sign in its name; a slug cannot."""
    execute(database_url, OLD_SCHEMA)
    execute(database_url, "CREATE SCHEMA plain")

    outcome = run("adopt", "weird=we=ird Co", "plain", "--at-version", "0")

    assert outcome == Outcome(
        0,
        "adopted weird (schema we=ird Co, at weird.localhost)\nadopted plain (schema plain, at plain.localhost)\n",
        "",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone"], ("schema 'gone' cannot be used", "there is none of that name")),
        (["old-co=acme"], ("tenant 'acme' exists already",)),
        (["acme=old"], ("tenant 'acme' exists already",)),
        (["OldCo"], ("'OldCo' cannot be a tenant",)),
        (["oldco="], ("'' cannot be a tenant's schema: it is empty",)),
        (["=old"], ("'' cannot be a tenant",)),
        (["oldco=public"], ("'public' cannot be a tenant's schema: the name is reserved",)),
        (["www=old"], ("reserved by TENANTS_RESERVED_SLUGS",)),
        (["old", "gone"], ("schema 'gone' cannot be used",)),
        (["old", "--at-version", "7"], ("there is no migration 0007",)),
    ],
)
def test_adopt_refuses(run_in_vain: Run, arguments: list[str], words: tuple[str, ...]) -> None:
    """What cannot be used is refused with the reason, and nothing else is adopted instead."""
    assert_refused(run_in_vain("adopt", *arguments), *words)


def test_adopt_takes_a_slug_once(run_in_vain: Run) -> None:
    """Two schemas for one subdomain are a mistake: neither is adopted."""
    assert_misused(run_in_vain("adopt", "oldco=old", "oldco=gone"), "oldco is given twice")


@pytest.mark.parametrize("arguments", [[], ["old", "--at-version", "-1"], ["old", "--at-version", "x"]])
def test_adopt_needs_schemas_and_a_version(run_in_vain: Run, arguments: list[str]) -> None:
    """A command typed wrong ends with status 2."""
    assert_misused(run_in_vain("adopt", *arguments))


# list


def test_list_is_lines_with_tabs(run: Run) -> None:
    """Without a terminal each tenant is one line of slug, schema, name, version and state, in order of slug."""
    run("create", "newco", "--name", "[red]New[/red] Co ü", "--schema", "Its own")
    run("suspend", "globex")

    lines = run("list").out.splitlines()

    assert lines == [
        "acme\tacme\tAcme\t0001\tactive",
        "company1\tcompany1\tcompany1\t0001\tactive",
        "company2\tcompany2\tcompany2\t0001\tactive",
        "globex\tglobex\tGlobex\t0001\tsuspended",
        "newco\tIts own\t[red]New[/red] Co ü\t0001\tactive",
    ]


def test_empty_list_is_no_result(run: Run) -> None:
    """Where there is no tenant, stdout stays empty, and stderr says how to make one."""
    assert run("list", "--trash") == Outcome(0, "", "the trash is empty\n")

    run("drop", "acme", "company1", "company2", "globex", "--yes")

    assert run("list") == Outcome(0, "", "no tenants yet; the command create makes one\n")


# user add


def find_users(database_url: str, slug: str) -> dict[str, str]:
    """Return the hash of each user of a tenant."""

    async def find(database: Database) -> dict[str, str]:
        tenant = next(tenant for tenant in await list_tenants(database) if tenant.slug == slug)
        async with database.tenant_connection(tenant) as connection:
            return {row["username"]: row["password"] for row in await connection.fetch(LIST_USERS)}

    return ask(database_url, find)


def test_user_is_added_to_one_tenant(run: Run, database_url: str) -> None:
    """The user is that tenant's and no other's, with a hash in place of the password."""
    outcome = run("user", "add", "acme", "ann", "--password-stdin", stdin=b"sesame\n")

    assert outcome == Outcome(0, "added ann to acme\n", "")
    assert find_users(database_url, "acme")["ann"].startswith("$argon2id$")
    assert find_users(database_url, "globex") == {}


@pytest.mark.parametrize("name", ["ann@example.com", "Änne Müller", "a" * 254])
def test_username_is_any_printable_text(run: Run, database_url: str, name: str) -> None:
    """An address, blanks and accents are fine."""
    assert run("user", "add", "acme", name, "--password-stdin", stdin=b"sesame").status == 0

    assert list(find_users(database_url, "acme")) == [name]


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (["newco", "ann"], b"sesame", ("no tenant answers at 'newco'",)),
        (["company1", "user_1"], b"sesame", ("tenant 'company1' has a user 'user_1' already",)),
        (["acme", ""], b"sesame", ("cannot be a user", "1 to 254 printable characters")),
        (["acme", "a" * 255], b"sesame", ("cannot be a user",)),
        (["acme", "a\nb"], b"sesame", ("cannot be a user",)),
        (["acme", "\udcff"], b"sesame", ("cannot be a user",)),
        (["acme", "ann"], b"", ("the password is empty",)),
        (["acme", "ann"], b"\nsesame\n", ("the password is empty",)),
        (["acme", "ann"], b"x" * 4097, ("at most 4096 characters",)),
        (["acme", "ann"], b"sesame\xff\n", ("the password is no text",)),
        (["acme", "ann"], b"sesame\0\n", ("the password is no text",)),
    ],
)
def test_user_add_refuses(
    run_in_vain: Run, shared_url: str, arguments: list[str], stdin: bytes, words: tuple[str, ...]
) -> None:
    """What cannot be stored is refused with the reason, and the password is not repeated."""
    outcome = run_in_vain("user", "add", *arguments, "--password-stdin", stdin=stdin)

    assert_refused(outcome, *words)
    assert "sesame" not in outcome.err
    assert find_users(shared_url, "acme") == {}


def test_user_add_reads_the_first_line(run: Run, database_url: str) -> None:
    """The password is one line, its blanks included and its end not."""
    run("user", "add", "acme", "ann", "--password-stdin", stdin=b" sesame \r\nmore\n")

    assert argon2.verify(" sesame ", find_users(database_url, "acme")["ann"])


def test_user_add_takes_4096_characters(run: Run) -> None:
    """The longest password that can be used to log in can be set."""
    assert run("user", "add", "acme", "ann", "--password-stdin", stdin=b"x" * 4096 + b"\n").status == 0


def test_user_add_without_a_terminal_asks_nothing(run_in_vain: Run) -> None:
    """Without a terminal the password is not read from stdin by accident."""
    assert_refused(run_in_vain("user", "add", "acme", "ann", stdin=b"sesame\n"), NO_TERMINAL, "--password-stdin")


@pytest.mark.parametrize("arguments", [["acme"], ["acme", "ann", "sesame"], ["acme", "ann", "--password", "sesame"]])
def test_password_is_no_argument(run_in_vain: Run, arguments: list[str]) -> None:
    """Other users of the machine can read a command line, so a password in it is a usage error."""
    assert_misused(run_in_vain("user", "add", *arguments))

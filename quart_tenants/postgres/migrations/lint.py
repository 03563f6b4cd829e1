"""Find in migration files, before they run, what is dangerous, and what would not run on Citus. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from quart_tenants.postgres.migrations.lint_rules import REMEDIES, Danger, FileLint, History
from quart_tenants.postgres.migrations.migration_files import Migration
from quart_tenants.postgres.migrations.portability_rules import PORTABLE_REMEDIES, PortabilityCheck


@dataclass(frozen=True, slots=True)
class Finding:
    """A danger in a file.

    Attributes:
        file: The name of the file.
        line: Where the statement begins, from 1.
        rule: The name of the danger, by which a file may accept it.
        what: The table, the column or the statement.
        remedy: The safe form.
    """

    file: str
    line: int
    rule: str
    what: str
    remedy: str


def lint_files(migrations: Sequence[Migration], versions: Collection[int] | None = None) -> list[Finding]:
    """Return the dangers in *migrations* that no directive accepts, in order of file and line.

    Args:
        migrations: All files of a folder, because a file may rely on what earlier ones have prepared.
        versions: The files to look into; default: all.

    Raises:
        MigrationFileError: A file is no SQL.
    """
    history = History()
    dangers = {}
    for migration in migrations:
        lint = FileLint(migration.sql, _list_lines(migration), history, in_transaction=migration.script.in_transaction)
        dangers[migration.version] = lint.find_dangers()
    return _collect(migrations, versions, dangers)


def check_portable_files(migrations: Sequence[Migration], versions: Collection[int] | None = None) -> list[Finding]:
    """Return what in *migrations* fails on Citus, or is silently wrong there, as `lint_files` returns dangers.

    Args:
        migrations: All files of a folder, because a later file may add the key that an earlier one leaves out.
        versions: The files to look into; default: all.

    Raises:
        MigrationFileError: A file is no SQL.
    """
    check = PortabilityCheck()
    dangers = {
        migration.version: check.look_at_file(migration.version, migration.sql, _list_lines(migration))
        for migration in migrations
    }
    for version, danger in check.list_without_key():
        dangers[version].append(danger)
    return _collect(migrations, versions, dangers)


def _list_lines(migration: Migration) -> list[int]:
    return [statement.line for statement in migration.script.statements]


def _collect(
    migrations: Sequence[Migration], versions: Collection[int] | None, dangers: Mapping[int, Sequence[Danger]]
) -> list[Finding]:
    """Return what is left of *dangers*, by version, where no directive accepts it."""
    remedies = REMEDIES | PORTABLE_REMEDIES
    findings: list[Finding] = []
    for migration in migrations:
        if versions is not None and migration.version not in versions:
            continue
        accepted = {one.rule for one in migration.script.accepted}
        findings += [
            Finding(migration.name, danger.line, danger.rule, danger.what, remedies[danger.rule])
            for danger in sorted(dangers[migration.version], key=lambda danger: danger.line)
            if danger.rule not in accepted
        ]
        # A name that was typed wrong accepts nothing.
        findings += [
            Finding(migration.name, one.line, "accept", one.rule, "there is no danger of this name")
            for one in migration.script.accepted
            if one.rule not in remedies
        ]
    return findings

"""Find dangers in migration files before they run: long locks, rewritten tables, and what old code misses. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from quart_tenants.postgres.migrations.lint_rules import REMEDIES, FileLint, History
from quart_tenants.postgres.migrations.migration_files import Migration


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
    findings: list[Finding] = []
    for migration in migrations:
        script = migration.script
        lines = [statement.line for statement in script.statements]
        lint = FileLint(migration.sql, lines, history, in_transaction=script.in_transaction)
        dangers = lint.find_dangers()
        if versions is not None and migration.version not in versions:
            continue
        accepted = {one.rule for one in script.accepted}
        findings += [
            Finding(migration.name, danger.line, danger.rule, danger.what, REMEDIES[danger.rule])
            for danger in dangers
            if danger.rule not in accepted
        ]
        # A name that was typed wrong accepts nothing.
        findings += [
            Finding(migration.name, one.line, "accept", one.rule, "there is no danger of this name")
            for one in script.accepted
            if one.rule not in REMEDIES
        ]
    return findings

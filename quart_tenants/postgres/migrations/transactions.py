"""Divide migrations into as few transactions as PostgreSQL allows."""

import itertools
from collections.abc import Sequence

import asyncpg

from quart_tenants.errors import MigrationFailedError
from quart_tenants.postgres.migrations.migration_files import Migration


def take_together(migrations: Sequence[Migration], *, new_tables: bool = False) -> list[Migration]:
    """Return the first of *migrations*, as many as may run in one transaction by their text. Pure.

    Args:
        migrations: In order of version.
        new_tables: Whether nobody uses the tables yet, so that no file must run outside a transaction.
    """
    together: list[Migration] = []
    for migration, later in itertools.zip_longest(migrations, migrations[1:]):
        if not (new_tables or migration.script.in_transaction):
            break
        together.append(migration)
        # SET CONSTRAINTS ALL also holds for constraints that a later file makes, until the transaction ends.
        behind = [] if later is None else migrations[migrations.index(later) :]
        if migration.script.sets_all_constraints and any("deferrable" in each.sql.lower() for each in behind):
            break
    return together


def count_committed_first(error: BaseException, migrations: Sequence[Migration]) -> int:
    """Return how many of *migrations* must be committed before the one that failed with *error* can succeed. Pure.

    It is 0 unless the file has used an enum value that an earlier one of them has added: PostgreSQL lets nobody use the
    value before the commit. (From version 17 on it does if the same transaction has made the type.)
    """
    cause = error.__cause__ if isinstance(error, MigrationFailedError) else error
    if not isinstance(cause, asyncpg.UnsafeNewEnumValueUsageError):
        return 0
    names = [migration.name for migration in migrations]
    name = error.migration if isinstance(error, MigrationFailedError) else None
    # What is no file runs after all of them: a new tenant's first rows.
    return names.index(name) if name in names else len(names)

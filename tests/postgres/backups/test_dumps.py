"""Comments and security labels are left out of a dump only where there are none."""

import os
import subprocess
from pathlib import Path

from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.backup_files import open_backup
from quart_tenants.postgres.backups.client_programs import (
    ClientPrograms,
    build_environment,
    find_client_programs,
)
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug
from tests.postgres.backups.parts import GLOBEX, outside

# The server has no provider of labels, and writes none without one. So the row is written by hand.
ADD_LABEL = """
SET allow_system_table_mods TO on;
INSERT INTO pg_seclabel (objoid, classoid, objsubid, provider, label)
VALUES ('globex.by_hand'::regclass, 'pg_class'::regclass, 0, 'tests', 'secret')
"""
COMMENT = "COMMENT ON COLUMN globex.by_hand.id IS 'the only comment'"
COUNT = "SELECT count(*) FROM {} WHERE objoid >= 16384"


async def read_dump(programs: ClientPrograms, settings: Settings, database: Database, slug: Slug, file: Path) -> str:
    """Back the tenant up, and return the SQL of the dump."""
    await backup_tenant(database, slug, file, settings=settings, force=True)
    with open_backup(file) as (_, dump):
        return subprocess.run(programs.write_sql(), stdin=dump, capture_output=True, text=True, check=True).stdout


async def test_only_comment_and_only_label_of_a_database_are_in_the_dump(
    database: Database, database_url: str, settings: Settings, dump_file: Path
) -> None:
    """One comment or one label anywhere in the database, and pg_dump is asked for all of them."""
    async with outside(database_url) as connection:
        programs = await find_client_programs(connection.get_server_version().major)
        counts = [await connection.fetchval(COUNT.format(place)) for place in ("pg_description", "pg_seclabel")]
        before = await read_dump(programs, settings, database, GLOBEX, dump_file)

        await connection.execute(COMMENT)
        with_comment = await read_dump(programs, settings, database, GLOBEX, dump_file)
        await connection.execute(ADD_LABEL)
        with_label = await read_dump(programs, settings, database, GLOBEX, dump_file)

    assert counts == [0, 0]
    assert [text.count("the only comment") for text in (before, with_comment, with_label)] == [0, 1, 1]
    assert [text.count("SECURITY LABEL FOR tests") for text in (before, with_comment, with_label)] == [0, 0, 1]


async def test_dump_that_leaves_them_out_loses_them(
    database: Database, database_url: str, settings: Settings, dump_file: Path
) -> None:
    """Negative control: pg_dump that is told to leave them out writes neither, though they are there."""
    async with outside(database_url) as connection:
        await connection.execute(COMMENT)
        await connection.execute(ADD_LABEL)
    async with outside(database_url) as connection, connection.transaction(isolation="repeatable_read"):
        programs = await find_client_programs(connection.get_server_version().major)
        snapshot = await connection.fetchval("SELECT pg_export_snapshot()")
        environment = build_environment(database_url, os.environ)

        def dump(*, asked: bool) -> str:
            command = programs.dump(SchemaName("globex"), snapshot, comments=asked, labels=asked)
            command[1] = "--format=plain"
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

        left_out, asked = dump(asked=False), dump(asked=True)

    assert ("the only comment" in asked, "SECURITY LABEL" in asked) == (True, True)
    assert ("the only comment" in left_out, "SECURITY LABEL" in left_out) == (False, False)

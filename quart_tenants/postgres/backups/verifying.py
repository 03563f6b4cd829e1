"""Prove a backup: restore it in a transaction that is rolled back, and compare every object and every row."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quart_tenants.connection import Connection
from quart_tenants.errors import ClientProgramError
from quart_tenants.postgres.backups.client_programs import ClientPrograms, describe_failure, start_program
from quart_tenants.postgres.backups.migrated_shapes import LIST_RELATIONS, write_same_texts
from quart_tenants.postgres.backups.pouring import Dump, run_restoration
from quart_tenants.postgres.backups.restore_scripts import (
    Restoration,
    describe_objects,
    write_difference,
)
from quart_tenants.postgres.backups.rows_only import begin_reading
from quart_tenants.postgres.blocks.database import Database, enter_schema
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, quote_literal

# Only the number of such an object is described, and that is another one after a restore.
_DESCRIBED = r"""part !~ '^\((other|label|"right for later"),'"""
_LIST_OBJECTS = f"""
SELECT part FROM ({describe_objects("$1::boolean")}) AS described WHERE {_DESCRIBED}
"""  # noqa: S608  (a file of ours)
# In no order, and with the generated columns, which a dump leaves out.
_COUNT_ROWS = """
SELECT concat_ws(' ', count(*), sum(pg_catalog.hashtextextended((r.*)::text, 0)::numeric)) FROM {name} AS r
"""


@dataclass(frozen=True, slots=True)
class Picture:
    """What a backup must become again.

    Attributes:
        objects: A text for each object of the schema.
        rows: Each table, as FROM takes it, and a digest of its rows. The partitions of a table count as one.
    """

    objects: Sequence[str]
    rows: Sequence[tuple[str, str]]


async def take_picture(
    connection: Connection,
    schema: SchemaName,
    snapshot: str,
    programs: ClientPrograms,
    environment: Mapping[str, str],
    *,
    settings: Settings,
    privileges: bool,
) -> Picture:
    """Return what *schema* holds in *snapshot*. This reads all of its rows.

    Raises:
        ClientProgramError: psql failed.
    """
    await enter_schema(connection, schema, settings=settings)
    await write_same_texts(connection)
    objects = [row["part"] for row in await connection.fetch(_LIST_OBJECTS, privileges)]
    await connection.execute("SET LOCAL search_path TO ''")
    # A materialized view is not compared: a restore fills it anew, and it may have other rows then.
    # Partitions are counted together: in which one a row lies may depend on the number of a type, by a hash.
    tables = [
        row["name"] if row["kind"] == "p" else f"ONLY {row['name']}"
        for row in await connection.fetch(LIST_RELATIONS, schema.name)
        if row["kind"] in "rp" and not row["is_partition"]
    ]
    path = ", ".join(each.quoted for each in (schema, *settings.shared_schemas))
    script = f"{begin_reading(snapshot, path)}{''.join(_count(name) + ';' for name in tables)}COMMIT;\n"
    async with start_program(programs.read_rows(), environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as psql:
        printed = b"".join([chunk async for chunk in psql.print_for(script.encode())])
        status, words = await psql.wait()
    digests = printed.decode().splitlines()
    if status != 0 or len(digests) != len(tables):
        raise ClientProgramError(f"the rows of schema {schema} cannot be compared: {describe_failure('psql', words)}")
    return Picture(objects, list(zip(tables, digests, strict=True)))


async def verify_backup(
    database: Database,
    connection: Connection,
    restoration: Restoration,
    dump: Dump,
    picture: Picture,
    environment: Mapping[str, str],
    *,
    source: str,
    server_version: int,
) -> None:
    """Restore the backup, compare it with *picture*, and roll everything back.

    It becomes a schema in the database for a moment, which nobody else sees. Foreign keys lock the shared tables that
    they refer to for as long as PostgreSQL checks them, against writers.

    Args:
        database: For a look at who is in the way.
        connection: Inside the block that holds the tenant's lock.
        restoration: Into the very schema that was backed up.
        dump: The content of the backup.
        picture: From the moment of the backup.
        environment: Where psql connects.
        source: What errors call the backup.
        server_version: The version of the server, for example 180001.

    Raises what `restore_tenant` raises, and:
        BackupFileError: What came back is not what was backed up.
    """
    await run_restoration(
        database,
        connection,
        restoration,
        dump,
        environment,
        source=source,
        server_version=server_version,
        instead=_write_comparison(restoration, picture),
    )


def _write_comparison(restoration: Restoration, picture: Picture) -> str:
    """Return the script that fails at the first difference, and rolls back."""
    described = describe_objects(str(restoration.privileges).lower())
    expected = ", ".join(f"({quote_literal(part)})" for part in picture.objects)
    now = f"SELECT part FROM ({described}) AS described WHERE {_DESCRIBED}"  # noqa: S608  (a file of ours)
    then = f"SELECT part FROM (VALUES {expected}) AS expected (part)"  # noqa: S608  (literals)
    script = [
        restoration.prepare_comparison,
        write_difference("'lacks ' || substr(part, 1, 200)", f"({then} EXCEPT {now}) AS lost"),
        write_difference("'has also ' || substr(part, 1, 200)", f"({now} EXCEPT {then}) AS gained"),
    ]
    for name, digest in picture.rows:
        rows = f"({_count(name)}) AS now (digest) WHERE digest <> {quote_literal(digest)}"
        counts = f"split_part(digest, ' ', 1) || ' rows came back, and {digest.split(' ')[0]} were backed up'"
        place = quote_literal(f"has other rows in {name.removeprefix('ONLY ')}: ")
        script.append(write_difference(f"{place} || {counts}", rows))
    return "".join([*script, "ROLLBACK;\n"])


def _count(name: str) -> str:
    return _COUNT_ROWS.format(name=name)

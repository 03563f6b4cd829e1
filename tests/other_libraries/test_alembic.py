"""Alembic: its revisions become files of ours, and schemas that it made become tenants."""

import asyncio
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from quart_tenants.admin import (
    Slug,
    adopt_schemas,
    create_tenant,
    migrate_fleet,
    parse_schema_name,
    parse_slug,
    plan_fleet,
)
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import init_registry
from quart_tenants.settings import Settings
from tests.support.databases import execute

SCRIPT = Path(__file__).parents[2] / "examples" / "alembic_files.py"
# As `alembic init` makes it, for a connection that is handed over and for SQL.
ENVIRONMENT = """
from alembic import context

if context.is_offline_mode():
    context.configure(
        url="postgresql+asyncpg://", literal_binds=True, dialect_opts={"paramstyle": "named"}, transactional_ddl=False
    )
else:
    context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
"""
REVISION = """
import sqlalchemy as sa
from alembic import op

revision = {revision!r}
down_revision = {before!r}

def upgrade():
    {upgrade}
"""
FIRST = """op.create_table(
        "note",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("mood", sa.Enum("glad", "sad", name="mood"), server_default="glad", nullable=False),
    )"""
SECOND = """op.add_column("note", sa.Column("text", sa.Text, server_default="it's; new"))"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Alembic with one revision."""
    scripts = tmp_path / "alembic"
    (scripts / "versions").mkdir(parents=True)
    (scripts / "env.py").write_text(ENVIRONMENT)
    config = Config()
    config.set_main_option("script_location", str(scripts))
    config.set_main_option("path_separator", "os")
    add_revision(config, "a1", None, FIRST, "First tables")
    return config


def add_revision(config: Config, revision: str, before: str | None, upgrade: str, title: str) -> None:
    """Write a revision by hand."""
    text = f'"""{title}"""\n' + REVISION.format(revision=revision, before=before, upgrade=upgrade)
    Path(str(config.get_main_option("script_location")), "versions", f"{revision}.py").write_text(text)


def load_script() -> ModuleType:
    """Return the script of the examples."""
    spec = importlib.util.spec_from_file_location("alembic_files", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def upgrade_schema(config: Config, database_url: str, schema: str) -> None:
    """Let Alembic itself make the tables of *schema*, as its cookbook says for tenants."""
    url = re.sub("^postgresql:", "postgresql+psycopg:", database_url)
    engine = sa.create_engine(url, connect_args={"options": f"-c search_path={schema}"})
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
    engine.dispose()


async def test_revisions_become_files_and_schemas_become_tenants(
    config: Config, database_url: str, tmp_path: Path
) -> None:
    """An adopted schema and a new tenant have the same tables at the end, and Alembic's own note of its revision."""
    await execute(database_url, "DROP SCHEMA IF EXISTS quart_tenants CASCADE", "CREATE SCHEMA old_one")
    await asyncio.to_thread(upgrade_schema, config, database_url, "old_one")
    folder = tmp_path / "migrations"
    folder.mkdir()
    module = load_script()
    assert [path.name for path in module.write_files(config, folder)] == ["0001_first_tables.sql"]
    settings = Settings(migrations_dir=folder, database_url=database_url)

    async with await Database.open(settings, max_size=2) as database:
        await init_registry(database)
        schemas = {Slug("old"): parse_schema_name("old_one")}
        await adopt_schemas(database, schemas, settings=settings, version=1)
        add_revision(config, "b2", "a1", SECOND, "A text, too")
        assert [path.name for path in module.write_files(config, folder)] == ["0002_a_text_too.sql"]
        settings = Settings(migrations_dir=folder, database_url=database_url)
        plan = await plan_fleet(database, settings=settings)
        report = await migrate_fleet(database, plan, settings=settings)
        await create_tenant(database, parse_slug("new"), "New", settings=settings)
        async with database.connection() as connection:
            columns = {
                schema: [
                    (row["table_name"], row["column_name"], row["column_default"])
                    for row in await connection.fetch(
                        "SELECT table_name, column_name, replace(column_default, $1 || '.', '') AS column_default"
                        " FROM information_schema.columns WHERE table_schema = $1 ORDER BY 1, 2",
                        schema,
                    )
                ]
                for schema in ("old_one", "new")
            }
            revisions = [
                await connection.fetchval(f"SELECT version_num FROM {schema}.alembic_version") for schema in columns
            ]

    assert not report.failed
    assert columns["old_one"] == columns["new"]
    assert ("note", "text", "'it''s; new'::text") in columns["new"]
    assert revisions == ["b2", "b2"]


def test_file_of_ones_own_stays_between_them(config: Config, tmp_path: Path) -> None:
    """A revision is known by its name, and not by its place."""
    write_files = load_script().write_files
    write_files(config, tmp_path)
    (tmp_path / "0002_own.sql").write_text("CREATE TABLE own (id int)")
    add_revision(config, "b2", "a1", SECOND, "A text, too")

    assert [path.name for path in write_files(config, tmp_path)] == ["0003_a_text_too.sql"]
    assert write_files(config, tmp_path) == []


@pytest.mark.parametrize("joined", [False, True])
def test_revisions_that_branch_are_refused(config: Config, tmp_path: Path, *, joined: bool) -> None:
    """Files have one order."""
    add_revision(config, "b1", "a1", SECOND, "One")
    add_revision(config, "b2", "a1", SECOND, "Two")
    if joined:
        path = Path(str(config.get_main_option("script_location")), "versions", "c.py")
        path.write_text(REVISION.format(revision="c", before=("b1", "b2"), upgrade="pass"))

    with pytest.raises(SystemExit, match="must follow one another"):
        load_script().write_files(config, tmp_path)


def test_revision_before_one_that_has_a_file_is_refused(config: Config, tmp_path: Path) -> None:
    """The later one may have run already."""
    add_revision(config, "b2", "a1", SECOND, "Second")
    load_script().write_files(config, tmp_path)
    add_revision(config, "between", "a1", "pass", "Between")
    add_revision(config, "b2", "between", SECOND, "Second")

    with pytest.raises(SystemExit, match="a new revision comes last"):
        load_script().write_files(config, tmp_path)


def test_environment_that_writes_transactions_is_refused(config: Config, tmp_path: Path) -> None:
    """A COMMIT that is taken out of a text by hand may be another one."""
    path = Path(str(config.get_main_option("script_location")), "env.py")
    path.write_text(path.read_text().replace(", transactional_ddl=False", ""))

    with pytest.raises(SystemExit, match="transactional_ddl=False"):
        load_script().write_files(config, tmp_path)
    assert list(tmp_path.glob("*.sql")) == []

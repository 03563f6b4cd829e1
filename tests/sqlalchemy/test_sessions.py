"""Sessions of SQLAlchemy: each sees its tenant's tables and no others, on the connections of the pool."""

import asyncio
import enum
import functools
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from quart import Quart
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from quart_tenants import QuartTenants, embed_json, tenant_connection
from quart_tenants.admin import create_tenant, drop_tenant, parse_slug
from quart_tenants.connection import Connection
from quart_tenants.errors import (
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    NoTenantError,
    SettingError,
    UnknownTenantError,
)
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.timings import Timings
from quart_tenants.sqlalchemy import session_on, shared_session, tenant_session
from quart_tenants.web.context import working_for
from tests.support.databases import REFERENCE_FILES
from tests.support.patience import DEADLINE

pytestmark = pytest.mark.slow


class Base(DeclarativeBase):
    """What all models of these tests have in common."""


class Mood(enum.Enum):
    """A type that each tenant has for itself."""

    GLAD = "glad"
    SAD = "sad"


class Author(Base):
    """Who has written notes."""

    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    notes: Mapped[list["Note"]] = relationship(back_populates="author")


class Note(Base):
    """A note, with columns of the types for which SQLAlchemy does something on a connection."""

    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(sa.ForeignKey("author.id"))
    author: Mapped[Author] = relationship(back_populates="notes")
    mood: Mapped[Mood]
    facts: Mapped[Any] = mapped_column(JSONB(none_as_null=True), nullable=True)
    raw: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    tags: Mapped[list[str]] = mapped_column(ARRAY(sa.Text), default=list)


async def set_up(database_url: str, **config: object) -> tuple[Quart, QuartTenants]:
    """Return an app without pages."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url, **config)
    return app, QuartTenants(app)


async def make_tables(slug: str) -> None:
    """Make the models' tables, as the migrations of an app would."""
    async with tenant_session(slug) as session:
        connection = await session.connection()
        await connection.run_sync(Base.metadata.create_all)


@pytest.fixture
async def tenants(database_url: str) -> AsyncIterator[QuartTenants]:
    """The extension of an app with two tenants, whose tables are those of the models."""
    app, tenants = await set_up(database_url)
    async with app.app_context(), tenants.running():
        for slug in ("acme", "globex"):
            await make_tables(slug)
        yield tenants


# Whose rows


async def test_session_sees_the_rows_of_its_tenant_only(tenants: QuartTenants) -> None:
    """One model, two tenants: each has rows and numbers of its own."""
    for slug in ("acme", "globex"):
        async with tenant_session(slug) as session:
            session.add(Author(name=f"{slug}'s"))

    for slug in ("acme", "globex"):
        async with tenant_session(slug) as session:
            authors = (await session.scalars(sa.select(Author))).all()
            assert [(author.id, author.name) for author in authors] == [(1, f"{slug}'s")]


async def test_session_is_the_current_tenants(tenants: QuartTenants) -> None:
    """Without a tenant there is no session."""
    with pytest.raises(NoTenantError):
        tenant_session()
    tenant = tenants.registry.get_tenant(parse_slug("globex"))
    with working_for(tenant):
        async with tenant_session() as session:
            assert await session.scalar(sa.text("SELECT current_schema()")) == "globex"


async def test_session_that_was_kept_sees_nothing_afterwards(tenants: QuartTenants) -> None:
    """Its connection is another tenant's by then."""
    async with tenant_session("acme") as session:
        session.add(Author(name="a"))
    async with tenant_session("globex"):
        with pytest.raises(sa.exc.SQLAlchemyError):
            await session.scalars(sa.select(Author))


async def load_author(slug: str, name: str) -> Author:
    """Save an author, and return it as an object that belongs to no session."""
    async with tenant_session(slug) as session:
        author = Author(name=name)
        session.add(author)
    return author


async def test_object_of_one_tenant_is_refused_in_a_session_of_another(tenants: QuartTenants) -> None:
    """Both have an author with the number 1: changing acme's would change globex's."""
    await load_author("globex", "globex's")
    author = await load_author("acme", "acme's")
    author.name = "changed"
    async with tenant_session("globex") as session:
        for take in (session.add, session.delete, session.merge, session.refresh):
            with pytest.raises(sa.exc.InvalidRequestError, match=r"'acme'.* 'globex'|not persistent"):
                result = take(author)
                await result  # type: ignore[misc]
    async with tenant_session("acme") as session:
        session.add(author)
    for slug, name in (("acme", "changed"), ("globex", "globex's")):
        async with tenant_session(slug) as session:
            assert await session.scalar(sa.select(Author.name)) == name


async def test_session_that_knows_no_tenant_would_change_the_others_row(tenants: QuartTenants) -> None:
    """Negative control: SQLAlchemy finds the row by its number alone."""
    await load_author("globex", "globex's")
    author = await load_author("acme", "acme's")
    author.name = "changed"
    async with tenant_connection("globex") as connection:
        async with session_on(connection) as session:
            session.add(author)
        assert await connection.fetchval("SELECT name FROM author") == "changed"


# One transaction


async def test_leaving_the_block_commits_what_was_added(tenants: QuartTenants) -> None:
    """Nothing else need be called, and what was loaded can still be read."""
    async with tenant_session("acme") as session:
        note = Note(author=Author(name="a"), mood=Mood.GLAD)
        session.add(note)
    assert (note.id, note.author.name) == (1, "a")
    async with tenant_connection("acme") as connection:
        assert await connection.fetchval("SELECT mood::text FROM note") == "GLAD"


async def test_an_exception_undoes_what_was_committed_inside(tenants: QuartTenants) -> None:
    """The block is the transaction: a commit inside it is a savepoint that is given up."""
    with pytest.raises(LookupError):
        async with tenant_session("acme") as session:
            session.add(Author(name="a"))
            await session.commit()
            raise LookupError
    async with tenant_session("acme") as session:
        assert await session.scalar(sa.select(sa.func.count(Author.id))) == 0


async def test_rollback_goes_back_to_the_last_commit(tenants: QuartTenants) -> None:
    """After a refused row the block goes on, on the same tenant's path."""
    async with tenant_session("acme") as session:
        session.add(Author(name="a"))
        await session.commit()
        session.add(Author(name="a"))
        with pytest.raises(sa.exc.IntegrityError):
            await session.flush()
        await session.rollback()
        session.add(Author(name="b"))
        async with session.begin_nested():
            session.add(Author(name="c"))
    async with tenant_session("acme") as session:
        assert (await session.scalars(sa.select(Author.name).order_by(Author.id))).all() == ["a", "b", "c"]


async def test_refused_row_is_an_error_of_sqlalchemys(tenants: QuartTenants) -> None:
    """Around the block as well as inside it; nothing was saved."""
    with pytest.raises(sa.exc.IntegrityError) as caught:
        async with tenant_session("acme") as session:
            session.add_all([Author(name="a"), Author(name="a")])
    assert "author_name_key" in str(caught.value)
    async with tenant_session("acme") as session:
        assert await session.scalar(sa.select(sa.func.count(Author.id))) == 0


async def test_option_that_does_not_exist_costs_no_connection(tenants: QuartTenants) -> None:
    """It is an error in the app, which the next session does not feel."""
    for _ in range(3):
        with pytest.raises(TypeError, match="nonsense"):
            async with tenant_session("acme", nonsense=1):
                pass
    assert await list_authors("acme") == []


async def test_read_only_session_cannot_write(tenants: QuartTenants) -> None:
    """PostgreSQL refuses it."""
    with pytest.raises(sa.exc.DBAPIError, match="read-only"):
        async with tenant_session("acme", read_only=True) as session:
            session.add(Author(name="a"))


@pytest.mark.parametrize(
    "option",
    [
        {"isolation_level": "AUTOCOMMIT"},
        {"isolation_level": "READ COMMITTED"},
        {"postgresql_readonly": True},
        {"postgresql_deferrable": True},
    ],
    ids=str,
)
async def test_kind_of_transaction_cannot_be_changed(tenants: QuartTenants, option: dict[str, object]) -> None:
    """It is the block's, and has begun. Nothing is saved as if nothing had been asked."""
    with pytest.raises(sa.exc.InvalidRequestError, match="the block's transaction has begun"):
        async with tenant_session("acme") as session:
            await session.connection(execution_options=option)
            session.add(Author(name="a"))
    assert await list_authors("acme") == []


async def test_two_phases_are_refused(tenants: QuartTenants) -> None:
    """A prepared transaction would outlive the block."""
    with pytest.raises(sa.exc.InvalidRequestError, match="one phase"):
        async with tenant_session("acme", twophase=True) as session:
            session.add(Author(name="a"))
            await session.flush()
    assert await list_authors("acme") == []


async def list_authors(slug: str) -> list[str]:
    """Return the names that are saved."""
    async with tenant_connection(slug) as connection:
        return [row["name"] for row in await connection.fetch("SELECT name FROM author ORDER BY id")]


async def test_session_that_was_interrupted_saves_nothing(tenants: QuartTenants) -> None:
    """SQLAlchemy takes its connection for closed, and all for undone: so the block undoes all, and says so."""
    with pytest.raises(sa.exc.InvalidRequestError, match="interrupted"):
        async with tenant_session("acme") as session:
            session.add(Author(name="undone"))
            await session.flush()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await session.execute(sa.text("SELECT pg_sleep(60)"))
            await session.rollback()
            with pytest.raises(sa.exc.InvalidRequestError, match="leave the block"):
                await session.execute(sa.text("SELECT 1"))
    assert await list_authors("acme") == []


async def test_session_that_is_begun_by_hand_is_saved(tenants: QuartTenants) -> None:
    """With `session.begin()` there is nothing left to commit at the end."""
    async with tenant_session("acme", autobegin=False) as session, session.begin():
        session.add(Author(name="a"))
    assert await list_authors("acme") == ["a"]


async def test_session_on_the_connection_of_a_new_tenant_fills_it(tenants: QuartTenants) -> None:
    """All or nothing, with the tables of the migrations."""

    async def fill(connection: Connection) -> None:
        async with session_on(connection) as session:
            await session.execute(sa.text("INSERT INTO company_data (description) VALUES (:text)"), {"text": "first"})

    async def fail(connection: Connection) -> None:
        await fill(connection)
        raise LookupError

    with pytest.raises(LookupError):
        await tenants.create("newco", fill=fail)
    await tenants.create("newco", fill=fill)
    async with tenant_session("newco") as session:
        assert (await session.scalars(sa.text("SELECT description FROM company_data"))).all() == ["first"]


async def test_session_on_a_block_that_goes_on_undoes_what_failed(tenants: QuartTenants) -> None:
    """The block's own statements stay, if the block catches the error."""
    async with tenant_connection("acme") as connection:
        await connection.execute("INSERT INTO author (name) VALUES ('kept')")
        with pytest.raises(LookupError):
            async with session_on(connection) as session:
                session.add(Author(name="undone"))
                await session.flush()
                raise LookupError
        assert await connection.fetchval("SELECT string_agg(name, ',') FROM author") == "kept"


@pytest.mark.parametrize("end", ["cancelled", "refused and caught", "interrupted"])
async def test_block_goes_on_after_a_session_that_failed(tenants: QuartTenants, end: str) -> None:
    """What the session did is undone, and what the block did before it is saved."""
    async with tenant_connection("acme") as connection:
        await connection.execute("INSERT INTO author (name) VALUES ('kept')")
        with pytest.raises((TimeoutError, sa.exc.SQLAlchemyError)):
            async with asyncio.timeout(0.2 if end == "cancelled" else None), session_on(connection) as session:
                session.add(Author(name="undone"))
                await session.flush()
                if end == "cancelled":
                    await asyncio.Event().wait()
                elif end == "interrupted":
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.05):
                            await session.execute(sa.text("SELECT pg_sleep(60)"))
                else:
                    with pytest.raises(sa.exc.DBAPIError):
                        await session.execute(sa.text("SELECT 1/0"))
        await connection.execute("INSERT INTO author (name) VALUES ('later')")
    assert await list_authors("acme") == ["kept", "later"]


async def test_shared_session_needs_shared_schemas(tenants: QuartTenants) -> None:
    """As `shared_connection` does."""
    with pytest.raises(SettingError):
        shared_session()


# Types


@pytest.mark.parametrize("codec", ["none", "raw"])
async def test_json_is_what_python_says_whatever_codec_the_app_has(database_url: str, codec: str) -> None:
    """SQLAlchemy's own codecs are not set, and those of the app are not used."""
    app, tenants = await set_up(database_url)
    if codec == "raw":
        tenants.on_connect(embed_json)
    facts = {"deep": [1, 2.5, None, "ü", '"quoted"'], "flag": True}
    async with app.app_context(), tenants.running():
        await make_tables("acme")
        async with tenant_session("acme") as session:
            author = Author(name="a")
            values: list[Any] = ["text", [], 1]
            session.add_all([Note(author=author, mood=Mood.SAD, facts=facts, raw=value) for value in values])
            session.add(Note(author=author, mood=Mood.GLAD, facts=JSONB.NULL, raw=sa.null(), tags=["x", "y"]))
        async with tenant_session("acme") as session:
            notes = (await session.scalars(sa.select(Note).options(selectinload(Note.author)).order_by(Note.id))).all()
            assert [note.raw for note in notes] == ["text", [], 1, None]
            assert [note.facts for note in notes] == [facts] * 3 + [None]
            assert notes[-1].tags == ["x", "y"]
            assert {note.author.name for note in notes} == {"a"}
            deep = sa.select(Note.facts["deep"][1], Note.facts["deep"]).where(Note.facts.contains({"flag": True}))
            assert (await session.execute(deep)).all() == [(2.5, facts["deep"])] * 3
            both = sa.union(sa.select(Note.facts), sa.select(Note.facts))
            assert facts in (await session.scalars(both)).all()
            changed = sa.update(Note).where(Note.id == 1).values(facts={"new": 1}).returning(Note.facts)
            assert await session.scalar(changed) == {"new": 1}
            assert await session.scalar(sa.text("SELECT jsonb_typeof(facts) FROM note WHERE id = 4")) == "null"
            assert await session.scalar(sa.text("SELECT raw IS NULL FROM note WHERE id = 4")) is True


class Wrapped(sa.types.TypeDecorator[Any]):
    """A type of an app's own, which is JSON in the database."""

    impl = sa.JSON
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: object) -> Any:
        """Wrap it."""
        return {"wrapped": value}

    def process_result_value(self, value: Any, dialect: object) -> Any:
        """Take it out."""
        return value["wrapped"]


def load_json(text: str) -> object:
    """Read JSON, as an app may have it."""
    return json.loads(text)


@pytest.mark.parametrize("codec", ["none", "raw", "loads"])
async def test_statements_with_json_are_those_of_sqlalchemy(database_url: str, codec: str) -> None:
    """Arrays, aggregates, an empty IN, DISTINCT, UNION, many rows at once: nothing is added to the statement."""
    app, tenants = await set_up(database_url)

    async def set_codec(connection: Any) -> None:
        for name in ("json", "jsonb"):
            await connection.set_type_codec(name, schema="pg_catalog", encoder=json.dumps, decoder=load_json)

    if codec != "none":
        tenants.on_connect(embed_json if codec == "raw" else set_codec)
    table = sa.Table(
        "facts",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("b", JSONB),
        sa.Column("many", ARRAY(JSONB)),
        sa.Column("own", Wrapped),
    )
    async with app.app_context(), tenants.running():
        async with tenant_session("acme") as session:
            connection = await session.connection()
            await connection.run_sync(table.create)
            values = [1, 1.0, {"n": 10}, {"n": 2}]
            rows = [{"b": value, "many": [value, {"n": 1}], "own": value} for value in values]
            await session.execute(sa.insert(table), rows)
            await session.execute(sa.insert(table).returning(table.c.id), rows[:2])
        async with tenant_session("acme") as session:
            b = table.c.b
            found = (await session.execute(sa.select(b, table.c.many, table.c.own).order_by(table.c.id).limit(4))).all()
            assert [tuple(row) for row in found] == [(value, [value, {"n": 1}], value) for value in values]
            assert len((await session.scalars(sa.select(b).distinct().order_by(b))).all()) == 3
            assert len((await session.scalars(sa.union(sa.select(b), sa.select(b)))).all()) == 3
            assert (await session.scalars(sa.select(b).where(b.in_([])))).all() == []
            assert (await session.scalars(sa.select(table.c.id).where(b.in_([{"n": 2}])))).all() == [4]
            every = await session.scalar(sa.select(sa.func.array_agg(b, type_=ARRAY(JSONB))))
            assert every is not None
            assert {"n": 2} in every
            plain = sa.text("SELECT b FROM facts WHERE id = 3").columns(b=JSONB)
            assert await session.scalar(plain) == {"n": 10}
            streamed = [value async for value in await session.stream_scalars(sa.select(b).order_by(table.c.id))]
            assert streamed[:4] == values
        async with tenant_connection("acme") as block:
            # The block's own statements have the app's codec.
            value = await block.fetchval("SELECT b FROM facts WHERE id = 3")
            assert type(value).__name__ == {"none": "str", "raw": "Raw", "loads": "dict"}[codec]
            assert await block.fetchval("SELECT jsonb_typeof(many[1]) FROM facts WHERE id = 3") == "object"


async def test_stream_reads_in_pieces(tenants: QuartTenants) -> None:
    """With a cursor of the server, inside the block."""
    async with tenant_session("acme") as session:
        session.add_all([Author(name=f"{number:03}") for number in range(120)])
    async with tenant_session("acme") as session:
        names = [name async for name in await session.stream_scalars(sa.select(Author.name).order_by(Author.name))]
    assert names == [f"{number:03}" for number in range(120)]


async def test_reflection_does_not_remember_the_first_tenant(tenants: QuartTenants) -> None:
    """The dialect is shared by all tenants, so it has no default schema."""
    async with tenant_session("globex") as session:
        await session.execute(sa.text("CREATE TABLE only_here (id int)"))

    async def list_tables(slug: str) -> list[str]:
        async with tenant_session(slug) as session:
            connection = await session.connection()
            return sorted(await connection.run_sync(lambda plain: sa.inspect(plain).get_table_names()))

    assert await list_tables("acme") == ["app_user", "author", "company_data", "note"]
    assert "only_here" in await list_tables("globex")


# What goes wrong


async def test_dropped_tenant_is_unknown(tenants: QuartTenants) -> None:
    """The error is the block's, as without SQLAlchemy."""
    tenant = tenants.registry.get_tenant(parse_slug("acme"))
    await drop_tenant(tenants.database, parse_slug("acme"))
    with pytest.raises(UnknownTenantError):
        async with tenant_session(tenant) as session:
            await session.scalars(sa.select(Author))


async def test_slow_statement_is_a_timeout_of_ours(tenants: QuartTenants) -> None:
    """The server's own limit is reported as everywhere."""
    with pytest.raises(DatabaseTimeoutError):
        async with tenant_session("acme") as session:
            await session.execute(sa.text("SET LOCAL statement_timeout = 50"))
            await session.execute(sa.text("SELECT pg_sleep(30)"))


async def test_lost_connection_is_an_error_of_ours(tenants: QuartTenants) -> None:
    """And the next session has another one."""
    with pytest.raises(DatabaseUnavailableError):
        async with tenant_session("acme") as session:
            session.add(Author(name="a"))
            await session.flush()
            await session.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
    async with tenant_session("acme") as session:
        assert await session.scalar(sa.select(sa.func.count(Author.id))) == 0


async def test_sessions_cost_no_server_process(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 sessions over 20 tenants, cancelled at random, on 5 connections: no foreign row, the same processes."""
    # A connection that cannot be cleaned up in time is closed, and a busy machine may need more than that time.
    patient = Timings(cleanup=DEADLINE, silence=DEADLINE)
    monkeypatch.setattr(Database, "open", functools.partial(Database.open, timings=patient))
    app, tenants = await set_up(database_url, TENANTS_POOL_MIN_SIZE=5, TENANTS_POOL_MAX_SIZE=5)
    chance = random.Random(12)  # noqa: S311
    slugs = [f"t{number}" for number in range(20)]
    foreign: list[tuple[str, str]] = []
    finished = 0
    at_once = asyncio.Semaphore(15)

    async def work(slug: str) -> None:
        nonlocal finished
        async with at_once, tenant_session(slug) as session:
            if chance.random() < 0.3:
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_later(chance.random() / 50, task.cancel)
            session.add(Author(name=f"{slug} {chance.random()}"))
            await session.flush()
            await session.execute(sa.text("SELECT pg_sleep(:seconds)"), {"seconds": chance.random() / 200})
            names = (await session.scalars(sa.select(Author.name))).all()
            foreign.extend((slug, name) for name in names if not name.startswith(f"{slug} "))
        finished += 1

    async with app.app_context(), tenants.running():
        for slug in slugs:
            await create_tenant(tenants.database, parse_slug(slug), slug, settings=tenants.settings)
        for slug in slugs:
            await make_tables(slug)
        before = await list_processes(tenants)
        tasks = [asyncio.create_task(work(chance.choice(slugs))) for _ in range(1000)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        after = await list_processes(tenants)

    errors = [error for error in results if isinstance(error, BaseException)]
    assert {type(error) for error in errors} <= {asyncio.CancelledError}
    assert finished + len(errors) == 1000
    assert len(errors) > 100
    assert foreign == []
    assert after == before
    assert len(after) == 5


async def list_processes(tenants: QuartTenants) -> set[int]:
    """Return the server processes of the pool, each asked by a block of its own at the same time."""
    everybody = asyncio.Barrier(5)

    async def ask() -> int:
        async with tenants.database.connection() as connection:
            await connection.execute("SELECT 1")
            await everybody.wait()
            return connection.get_server_pid()

    return set(await asyncio.gather(*(ask() for _ in range(5))))


async def test_plain_engine_would_read_the_wrong_tenant(database_url: str) -> None:
    """The negative control: a pool of SQLAlchemy's that sets search_path on its connections, as recipes do."""
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(database_url.replace("postgresql://", "postgresql+asyncpg://"), pool_size=1)
    try:
        async with AsyncSession(engine) as session:
            await session.execute(sa.text("SET search_path TO acme"))
            await session.commit()
        async with AsyncSession(engine) as session:
            assert await session.scalar(sa.text("SELECT current_schema()")) == "acme"
    finally:
        await engine.dispose()

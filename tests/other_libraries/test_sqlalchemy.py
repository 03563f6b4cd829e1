"""SQLAlchemy: a view reads and writes its tenant's rows by models. tests/sqlalchemy/ has the promises."""

from quart import Quart, ResponseReturnValue, request
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from quart_tenants import Connection, QuartTenants
from quart_tenants.sqlalchemy import session_on, tenant_session
from tests.other_libraries.support import make_app


class Base(DeclarativeBase):
    """What all models have in common."""


class Note(Base):
    """A row of the tenant's data."""

    __tablename__ = "company_data"
    id: Mapped[int] = mapped_column(primary_key=True)
    description: Mapped[str]


def add_routes(app: Quart, tenants: QuartTenants) -> None:
    """Add a view that writes, and one that reads."""

    @app.post("/notes", host=tenants.host)
    async def add_note() -> ResponseReturnValue:
        form = await request.form
        async with tenant_session() as session:
            note = Note(description=form["text"])
            session.add(note)
        return {"id": note.id}, 201

    @app.get("/notes", host=tenants.host)
    async def notes() -> ResponseReturnValue:
        async with tenant_session(read_only=True) as session:
            found = await session.scalars(select(Note).order_by(Note.id))
            return [note.description for note in found]


async def add_first_note(connection: Connection) -> None:
    """Write the first row of a new tenant."""
    async with session_on(connection) as session:
        session.add(Note(description="Welcome"))


async def sign_up(tenants: QuartTenants, slug: str) -> None:
    """Make a tenant with its first row, or none at all."""
    await tenants.create(slug, fill=add_first_note)


async def test_sign_up_writes_the_first_row(database_url: str) -> None:
    """In the transaction that makes the tenant."""
    app, tenants = make_app(database_url)
    add_routes(app, tenants)
    async with app.test_app():
        await sign_up(tenants, "newco")
        answer = await app.test_client().get("/notes", headers={"Host": "newco.localhost"})

    assert await answer.get_json() == ["Welcome"]


async def test_views_see_the_rows_of_their_tenant(database_url: str) -> None:
    """What is written at acme is not at globex."""
    app, tenants = make_app(database_url)
    add_routes(app, tenants)
    async with app.test_app():
        client = app.test_client()
        added = await client.post("/notes", form={"text": "hello"}, headers={"Host": "acme.localhost"})
        answers = {
            host: await (await client.get("/notes", headers={"Host": host})).get_json()
            for host in ("acme.localhost", "globex.localhost")
        }

    assert (added.status_code, await added.get_json()) == (201, {"id": 1})
    assert answers == {"acme.localhost": ["hello"], "globex.localhost": []}

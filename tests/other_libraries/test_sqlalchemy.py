"""SQLAlchemy: a view reads and writes its tenant's rows by models. tests/sqlalchemy/ has the promises."""

from quart import Quart, ResponseReturnValue, request
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from quart_tenants import QuartTenants
from quart_tenants.sqlalchemy import tenant_session
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

"""A hand-written FastAPI app: asyncpg's pool, the path set for each request and reset by the pool, a signed cookie."""

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import asyncpg
from fastapi import Depends, FastAPI, Form, HTTPException, Request
from passlib.hash import pbkdf2_sha256
from pydantic import BaseModel
from starlette.middleware.sessions import SessionMiddleware

_HOST = re.compile(r"([a-z][a-z0-9_]{0,62})\.localhost(?::[0-9]+)?")


class Row(BaseModel):
    """One of the tenant's rows."""

    id: int
    description: str


class Page(BaseModel):
    """What `/data` answers."""

    data: list[Row]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool, and close it."""
    async with asyncpg.create_pool(os.environ["DATABASE_URL"]) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(SessionMiddleware, secret_key=os.environ["SECRET_KEY"])


async def get_tenant(request: Request) -> str:
    """Return the schema that the host names."""
    matched = _HOST.fullmatch(request.headers.get("host", "").lower())
    if matched is None:
        raise HTTPException(404)
    return matched[1]


Tenant = Annotated[str, Depends(get_tenant)]


async def check_login(request: Request, tenant: Tenant) -> None:
    """Refuse who is not logged in, or is so at another tenant."""
    if "user" not in request.session:
        raise HTTPException(401)
    if request.session.get("site") != tenant:
        raise HTTPException(400)


async def get_connection(request: Request, tenant: Tenant) -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection that sees the tenant's schema. The pool resets the path when it comes back."""
    async with request.app.state.pool.acquire() as connection:
        await connection.execute("SELECT set_config('search_path', $1, false)", f'"{tenant}"')
        yield connection


Connection = Annotated[asyncpg.Connection, Depends(get_connection)]


@app.post("/login")
async def login(
    request: Request,
    tenant: Tenant,
    connection: Connection,
    uname: Annotated[str, Form()],
    passwd: Annotated[str, Form()],
) -> dict[str, str]:
    """Check the password, and begin a session."""
    stored = await connection.fetchval("SELECT password FROM app_user WHERE username = $1", uname)
    if stored is None or not pbkdf2_sha256.verify(passwd, stored):
        raise HTTPException(401)
    request.session.update(user=uname, site=tenant)
    return {"msg": "login successful"}


@app.get("/data", dependencies=[Depends(check_login)])
async def list_data(connection: Connection) -> Page:
    """Return the tenant's rows, 1,000 at most."""
    rows = await connection.fetch("SELECT id, description FROM company_data ORDER BY id LIMIT 1000")
    return Page(data=[Row(**row) for row in rows])


@app.get("/data/export", dependencies=[Depends(check_login)])
async def export_data(connection: Connection) -> Page:
    """Return all rows of the tenant."""
    rows = await connection.fetch("SELECT id, description FROM company_data ORDER BY id")
    return Page(data=[Row(**row) for row in rows])

"""A straightforward Quart rewrite of the seed: Quart's session, asyncpg's pool, the path set for each request."""

import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import wraps

import asyncpg
from passlib.hash import pbkdf2_sha256
from quart import Quart, abort, g, jsonify, request, session
from quart.wrappers import Response

_HOST = re.compile(r"([a-z][a-z0-9_]{0,62})\.localhost(?::[0-9]+)?")

app = Quart(__name__)
app.secret_key = os.environ["SECRET_KEY"]


@app.before_serving
async def open_pool() -> None:
    """Connect to the database."""
    app.pool = await asyncpg.create_pool(os.environ["DATABASE_URL"])


@app.after_serving
async def close_pool() -> None:
    """Close all connections."""
    await app.pool.close()


@app.before_request
async def find_tenant() -> None:
    """Keep the schema that the host names."""
    matched = _HOST.fullmatch(request.host.lower())
    if matched is None:
        abort(404)
    g.tenant = matched[1]


def login_required(view: Callable[[], Awaitable[Response]]) -> Callable[[], Awaitable[Response]]:
    """Refuse who is not logged in, or is so at another tenant."""

    @wraps(view)
    async def checked() -> Response:
        if "user" not in session:
            abort(401)
        if session.get("site") != g.tenant:
            abort(400)
        return await view()

    return checked


@asynccontextmanager
async def connect() -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection that sees the tenant's schema. The pool resets the path when it comes back."""
    async with app.pool.acquire() as connection:
        await connection.execute("SELECT set_config('search_path', $1, false)", f'"{g.tenant}"')
        yield connection


@app.post("/login")
async def login() -> Response:
    """Check the password, and begin a session."""
    form = await request.form
    async with connect() as connection:
        stored = await connection.fetchval("SELECT password FROM app_user WHERE username = $1", form.get("uname", ""))
    if stored is None or not pbkdf2_sha256.verify(form.get("passwd", ""), stored):
        abort(401)
    session["user"] = form["uname"]
    session["site"] = g.tenant
    return jsonify(msg="login successful")


@app.get("/data")
@login_required
async def list_data() -> Response:
    """Return the tenant's rows, 1,000 at most."""
    async with connect() as connection:
        rows = await connection.fetch("SELECT id, description FROM company_data ORDER BY id LIMIT 1000")
    return jsonify(data=[dict(row) for row in rows])

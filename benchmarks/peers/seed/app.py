"""The system that this project replaces, as it was but for today's Python and Flask: psycopg2 and `SET search_path`.

Its pool is the one thing that is changed for speed. With 1 connection to keep, as it had, psycopg2 closes every other
one that is given back, and most requests would open their own.
"""

import os
from collections.abc import Callable
from functools import wraps
from urllib.parse import urlparse

from flask import Flask, abort, g, jsonify, request, session
from flask.wrappers import Response
from passlib.hash import pbkdf2_sha256
from psycopg2.extras import RealDictCursor
from psycopg2.pool import ThreadedConnectionPool

app = Flask(__name__, static_folder=None, subdomain_matching=True)
app.secret_key = os.environ["SECRET_KEY"]
app.config["SERVER_NAME"] = "localhost"

pool = ThreadedConnectionPool(20, 20, os.environ["DATABASE_URL"], cursor_factory=RealDictCursor)


def login_required(f: Callable[..., object]) -> Callable[..., object]:
    """Refuse who is not logged in."""

    @wraps(f)
    def decorated_function(*args: object, **kwargs: object) -> object:
        if g.user is None:
            abort(401)
        return f(*args, **kwargs)

    return decorated_function


@app.url_value_preprocessor
def before_route(endpoint: str | None, values: dict[str, object] | None) -> None:
    """Take the subdomain from views that do not care about it."""
    if endpoint != "login" and values is not None:
        values.pop("tenant", None)


def schema_exists(schema_name: str) -> bool:
    """Return whether there is such a tenant."""
    with g.db.cursor() as cur:
        cur.execute("select nspname from pg_catalog.pg_namespace where nspname=%s", (schema_name,))
        return cur.fetchone() is not None


@app.before_request
def start() -> None:
    """Set the path of the current request."""
    g.db = pool.getconn()
    g.user = session.get("user", None)
    site = session.get("site", None)
    subdomain = urlparse(request.url).hostname.split(".")[0]
    if request.endpoint == "login":
        site = subdomain
        if not schema_exists(site):
            abort(400)
    if g.user is None and site is None:
        abort(401)
    if site != subdomain:
        abort(400)
    with g.db.cursor() as cur:
        cur.execute("SET search_path TO %s", (site,))


@app.teardown_request
def end(exception: BaseException | None) -> None:
    """Give the connection back."""
    db = getattr(g, "db", None)
    if db is not None:
        pool.putconn(db)


@app.route("/login", methods=["POST"], subdomain="<tenant>")
def login(tenant: str) -> tuple[Response, int]:
    """Check the password, and begin a session."""
    username = request.form.get("uname", "")
    password = request.form.get("passwd", "")
    with g.db.cursor() as cur:
        cur.execute("SELECT * from app_user WHERE username=%s", (username,))
        user = cur.fetchone()
    if user is None or not pbkdf2_sha256.verify(password, user["password"]):
        abort(401)
    session["user"] = user["username"]
    session["site"] = tenant
    return jsonify(msg="login successful"), 200


@app.route("/data", methods=["GET"], subdomain="<tenant>")
@login_required
def get_data() -> tuple[Response, int]:
    """Return the tenant's rows."""
    with g.db.cursor() as cur:
        cur.execute("SELECT * FROM company_data")
        return jsonify(data=cur.fetchall()), 200

"""Notes of companies: a small service in which each customer is a tenant."""

import asyncio
import csv
import hmac
import io
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path, PurePosixPath

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from itsdangerous import BadSignature, URLSafeTimedSerializer
from quart import (
    Blueprint,
    Quart,
    Response,
    ResponseReturnValue,
    abort,
    redirect,
    render_template,
    request,
    send_file,
    stream_with_context,
    url_for,
    websocket,
)

from quart_tenants import (
    Connection,
    InvalidCredentialsError,
    QuartTenants,
    RowJSONProvider,
    Tenant,
    TenantError,
    answer_tenant_error,
    current_tenant,
    end_session,
    for_each_tenant,
    get_next_path,
    get_session,
    login_attempt,
    login_required,
    publish,
    shared_connection,
    subscribe,
    tenant_connection,
    tenant_url,
)
from quart_tenants.admin import add_domain, change_tenant_settings, parse_domain, parse_slug
from quart_tenants.errors import MessagesLostError

HERE = Path(__file__).parent
MAX_ATTACHMENT_BYTES = 5_000_000
INVITATION_SECONDS = 7 * 24 * 3600
HASHER = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)
NOBODYS_HASH = HASHER.hash(uuid.uuid4().hex)
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def create_app() -> Quart:
    """Return the app. Its settings are the variables `QUART_*` of the environment."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(
        TENANTS_MIGRATIONS_DIR=HERE / "migrations",
        TENANTS_SHARED_SCHEMAS=["common"],
        TENANTS_SHARED_MIGRATIONS_DIR=HERE / "shared",
        MAX_CONTENT_LENGTH=MAX_ATTACHMENT_BYTES + 10_000,
        OPERATOR_PASSWORD=None,
    )
    app.config.from_prefixed_env()
    app.json = RowJSONProvider(app)
    tenants = QuartTenants(app)
    tenants.sign_in_endpoint = "sign_in"
    tenants.answer_http_errors()
    tenants.answer_headers.add({"Content-Security-Policy": CONTENT_SECURITY_POLICY})
    # A blueprint's static files are served at every host: at the domain itself and at every tenant's.
    app.register_blueprint(Blueprint("style", __name__, static_folder="static", static_url_path="/static"))
    add_sign_up(app, tenants)
    add_sign_in(app, tenants)
    add_notes(app, tenants)
    add_attachments(app, tenants)
    add_export(app, tenants)
    add_live_pages(app, tenants)
    add_invitations(app, tenants)
    add_domains(app, tenants)
    add_operators(app, tenants)
    add_digest(tenants)
    return app


def add_sign_up(app: Quart, tenants: QuartTenants) -> None:
    """Add the page of the domain itself that makes a tenant."""

    @app.get("/", host=tenants.apex_host)
    async def home() -> str:
        return await render_template("sign_up.html")

    @app.post("/sign-up", host=tenants.apex_host)
    async def sign_up() -> ResponseReturnValue:
        form = await request.form
        slug, email, password = form["slug"], form["email"].strip().lower(), form["password"]
        if not email or not password:
            return await render_template("sign_up.html", error="Give an e-mail address and a password."), 400
        password_hash = await asyncio.to_thread(HASHER.hash, password)

        async def add_first_user(connection: Connection) -> None:
            await add_user(connection, email, password_hash, owner=True)

        try:
            tenant = await tenants.create(slug, fill=add_first_user)
        except TenantError as error:
            return await answer_tenant_error(error, "sign_up.html")
        return await render_template("signed_up.html", link=tenant_url(tenant, "sign_in")), 201


async def add_user(connection: Connection, email: str, password_hash: str, *, owner: bool = False) -> bool:
    """Add a user to the tenant of *connection*; return whether there was none of that address."""
    added = await connection.fetchval(
        "INSERT INTO users (email, password_hash, owner) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING true",
        email,
        password_hash,
        owner,
    )
    return added is not None


def add_sign_in(app: Quart, tenants: QuartTenants) -> None:
    """Add the pages to sign in and out."""

    @app.get("/sign-in", host=tenants.host)
    async def sign_in() -> str:
        return await render_template("sign_in.html")

    @app.post("/sign-in", host=tenants.host)
    async def check_sign_in() -> ResponseReturnValue:
        form = await request.form
        email, password = form["email"].strip().lower(), form["password"]
        try:
            async with login_attempt(email) as attempt:
                async with tenant_connection(read_only=True) as connection:
                    user = await connection.fetchrow("SELECT id, password_hash FROM users WHERE email = $1", email)
                if not await check_password(user["password_hash"] if user else NOBODYS_HASH, password) or not user:
                    raise InvalidCredentialsError
                await attempt.succeed(str(user["id"]))
        except TenantError as error:
            return await answer_tenant_error(error, "sign_in.html")
        return redirect(get_next_path(), 303)

    @app.post("/sign-out", host=tenants.host)
    async def sign_out() -> ResponseReturnValue:
        await end_session()
        return redirect(url_for("sign_in"), 303)


async def check_password(password_hash: str, password: str) -> bool:
    """Return whether *password* is right. The hash takes long, so a thread computes it."""
    try:
        return await asyncio.to_thread(HASHER.verify, password_hash, password)
    except VerificationError:
        return False


def add_notes(app: Quart, tenants: QuartTenants) -> None:
    """Add the notes of a tenant: pages for people, and JSON for programs."""
    app.context_processor(lambda: {"new_form_id": uuid.uuid4})

    @app.get("/", host=tenants.host)
    @login_required
    async def list_page() -> str:
        wanted = request.args.get("q", "")
        return await render_template("notes.html", notes=await find_notes(wanted), q=wanted)

    @app.post("/notes", host=tenants.host)
    @login_required
    async def write_note() -> ResponseReturnValue:
        form = await request.form
        form_id = form.get("form_id", type=uuid.UUID) or abort(400, "This form is broken. Load the page again.")
        await save_note(form["body"], form_id)
        return redirect(url_for("list_page"), 303)

    @app.get("/api/notes", host=tenants.host)
    @login_required
    async def list_json() -> ResponseReturnValue:
        return {"notes": await find_notes(request.args.get("q", ""))}

    @app.post("/api/notes", host=tenants.host)
    @login_required
    async def write_json() -> ResponseReturnValue:
        sent = await request.get_json()
        if not isinstance(sent, dict) or not isinstance(sent.get("body"), str):
            abort(400, 'Send JSON: {"body": "…"}.')
        await save_note(sent["body"], uuid.uuid4())
        return {}, 201

    @app.get("/notes/<int:number>", host=tenants.host)
    @login_required
    async def note_page(number: int) -> str:
        async with tenant_connection(read_only=True) as connection:
            note = await connection.fetchrow("SELECT id, body, written_at FROM notes WHERE id = $1", number)
            files = await connection.fetch("SELECT id, name FROM attachments WHERE note_id = $1 ORDER BY id", number)
        if note is None:
            abort(404)
        return await render_template("note.html", note=note, files=files)


async def find_notes(wanted: str) -> list[dict[str, object]]:
    """Return the newest notes in which *wanted* occurs, in any case."""
    pattern = "%" + wanted.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_") + "%"
    async with tenant_connection(read_only=True) as connection:
        rows = await connection.fetch(
            "SELECT id, body, written_at FROM notes WHERE body ILIKE $1 ORDER BY id DESC LIMIT 100", pattern
        )
    return [dict(row) for row in rows]


async def save_note(body: str, form_id: uuid.UUID) -> None:
    """Save a note, and tell all pages of the tenant; do nothing if this form was saved already."""
    if not 1 <= len(body) <= 10000 or "\0" in body:
        abort(400, "A note has between 1 and 10,000 characters.")
    user = get_session().user or abort(401)
    async with tenant_connection() as connection:
        # One writer after the other, so that two together do not pass the limit. Readers go on.
        await connection.execute("LOCK TABLE notes IN SHARE ROW EXCLUSIVE MODE")
        plan = current_tenant.settings.get("plan", "small")
        if not await connection.fetchval(
            "SELECT (SELECT count(*) FROM notes) < plans.notes FROM plans WHERE name = $1", plan
        ):
            abort(403, "Your plan has no room for more notes.")
        number = await connection.fetchval(
            "INSERT INTO notes (body, form_id, written_by) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING id",
            body,
            form_id,
            int(user),
        )
        if number is not None:
            await publish({"added": number}, topic="notes", connection=connection)


def add_attachments(app: Quart, tenants: QuartTenants) -> None:
    """Add the files that belong to a note."""

    @app.post("/notes/<int:number>/attachments", host=tenants.host)
    @login_required
    async def attach(number: int) -> ResponseReturnValue:
        file = (await request.files)["file"]
        content = file.read(MAX_ATTACHMENT_BYTES + 1)
        if len(content) > MAX_ATTACHMENT_BYTES:
            abort(413)
        async with tenant_connection() as connection:
            if not await connection.fetchval("SELECT true FROM notes WHERE id = $1", number):
                abort(404)
            await connection.execute(
                "INSERT INTO attachments (note_id, name, content) VALUES ($1, $2, $3)",
                number,
                clean_name(file.filename or ""),
                content,
            )
        return redirect(url_for("note_page", number=number), 303)

    @app.get("/attachments/<int:number>", host=tenants.host)
    @login_required
    async def download(number: int) -> ResponseReturnValue:
        async with tenant_connection(read_only=True) as connection:
            row = await connection.fetchrow("SELECT name, content FROM attachments WHERE id = $1", number)
        if row is None:
            abort(404)
        # Never the type that a visitor has named: a page of HTML would run its scripts here.
        kind = "application/octet-stream"
        return await send_file(io.BytesIO(row["content"]), kind, as_attachment=True, attachment_filename=row["name"])


def clean_name(name: str) -> str:
    """Return the last part of *name*, without what no file name needs."""
    last = PurePosixPath(name.replace("\\", "/")).name
    cleaned = "".join(letter for letter in last if letter.isprintable()).strip(". ")
    return cleaned[-100:] or "file"


def add_export(app: Quart, tenants: QuartTenants) -> None:
    """Add a table of all notes, for spreadsheets."""

    @app.get("/notes.csv", host=tenants.host)
    @login_required
    async def export() -> Response:
        @stream_with_context
        async def lines() -> AsyncGenerator[str, None]:
            yield write_line("id", "written_at", "body")
            async with tenant_connection(read_only=True) as connection:
                async for row in connection.cursor("SELECT id, written_at, body FROM notes ORDER BY id"):
                    yield write_line(row["id"], row["written_at"].isoformat(), row["body"])

        return Response(lines(), mimetype="text/csv", headers={"Content-Disposition": "attachment; filename=notes.csv"})


def write_line(*cells: object) -> str:
    """Return a line of CSV in which no cell is a formula to a spreadsheet."""
    line = io.StringIO()
    texts = [str(cell) for cell in cells]
    starts = ("=", "+", "-", "@", "\t", "\r")
    csv.writer(line).writerow([f"'{text}" if text.startswith(starts) else text for text in texts])
    return line.getvalue()


def add_live_pages(app: Quart, tenants: QuartTenants) -> None:
    """Tell the open pages of a tenant that there is a new note."""

    @app.websocket("/live", host=tenants.host)
    @login_required
    async def live() -> None:
        async with subscribe("notes") as messages:
            await websocket.send_json({"live": True})
            while True:
                try:
                    message = await anext(messages)
                except MessagesLostError:
                    message = {"reload": True}
                await websocket.send_json(message)


def add_invitations(app: Quart, tenants: QuartTenants) -> None:
    """Add links by which colleagues join a tenant."""

    def get_signer() -> URLSafeTimedSerializer:
        # The tenant's number is part of the key, so one tenant's invitation is worth nothing at another.
        return URLSafeTimedSerializer(str(app.secret_key), salt=f"invitation to {current_tenant.id}")

    def read_invitation(token: str) -> str:
        try:
            return str(get_signer().loads(token, max_age=INVITATION_SECONDS))
        except BadSignature:
            abort(404, "This invitation is not valid any more. Ask for a new one.")

    @app.post("/invitations", host=tenants.host)
    @login_required
    async def invite() -> ResponseReturnValue:
        email = (await request.form)["email"].strip().lower()
        link = tenant_url(current_tenant.slug, "join", token=get_signer().dumps(email))
        return await render_template("invited.html", email=email, link=link)

    @app.get("/invitations/<token>", host=tenants.host)
    async def join(token: str) -> str:
        return await render_template("join.html", email=read_invitation(token))

    @app.post("/invitations/<token>", host=tenants.host)
    async def accept(token: str) -> ResponseReturnValue:
        email = read_invitation(token)
        password = (await request.form)["password"]
        if not password:
            return await render_template("join.html", email=email, error="Choose a password."), 400
        password_hash = await asyncio.to_thread(HASHER.hash, password)
        async with tenant_connection() as connection:
            if not await add_user(connection, email, password_hash):
                abort(409, "You have joined already. Sign in.")
        return redirect(url_for("sign_in"), 303)


def add_domains(app: Quart, tenants: QuartTenants) -> None:
    """Let a customer use a domain of their own."""

    @app.post("/domains", host=tenants.host)
    @login_required
    async def claim_domain() -> ResponseReturnValue:
        domain = parse_domain((await request.form)["domain"])
        async with tenant_connection(read_only=True) as connection:
            if not await connection.fetchval("SELECT owner FROM users WHERE id = $1", int(get_session().user or 0)):
                abort(403, "Ask the one who signed up: only they may do this.")
        await add_domain(tenants.database, current_tenant.slug, domain, settings=tenants.settings)
        return redirect(url_for("list_page"), 303)


def add_operators(app: Quart, tenants: QuartTenants) -> None:
    """Add the operators' page on the domain itself. Who knows OPERATOR_PASSWORD is an operator."""

    async def check_operator() -> None:
        given = request.authorization
        wanted = app.config["OPERATOR_PASSWORD"]
        async with login_attempt("operator", event="operator_login") as attempt:
            if given is None or wanted is None or not is_same(given.password or "", str(wanted)):
                raise InvalidCredentialsError
            await attempt.forgive()

    @app.get("/operators", host=tenants.apex_host)
    async def operators() -> ResponseReturnValue:
        if request.authorization is None:
            return "Operators only.", 401, {"WWW-Authenticate": 'Basic realm="operators"'}
        await check_operator()
        async with shared_connection() as connection:
            plans = await connection.fetch("SELECT name FROM plans ORDER BY notes")
        return await render_template("operators.html", counts=await for_each_tenant(count_notes), plans=plans)

    @app.post("/operators/<slug>", host=tenants.apex_host)
    async def change_plan(slug: str) -> ResponseReturnValue:
        await check_operator()
        await change_tenant_settings(tenants.database, parse_slug(slug), {"plan": (await request.form)["plan"]})
        return redirect(url_for("operators"), 303)


def is_same(given: str, wanted: str) -> bool:
    """Compare two secrets in a time that tells nothing about them."""
    return hmac.compare_digest(given.encode(), wanted.encode())


async def count_notes(tenant: Tenant) -> int:
    """Return how many notes *tenant* has."""
    async with tenant_connection(read_only=True) as connection:
        return int(await connection.fetchval("SELECT count(*) FROM notes"))


def add_digest(tenants: QuartTenants) -> None:
    """Add the command `quart tenants digest`."""

    @tenants.each_tenant_command("digest")
    async def digest(tenant: Tenant) -> str:
        """Print for each tenant how many notes are new today, with a link to them."""
        async with tenant_connection(read_only=True) as connection:
            new = await connection.fetchval("SELECT count(*) FROM notes WHERE written_at > now() - interval '1 day'")
        return f"{new} new at {tenant_url(tenant, 'list_page')}"

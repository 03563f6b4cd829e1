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
    current_app,
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
pages = Blueprint("notes", __name__, static_folder="static", static_url_path="/static")


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
    app.register_blueprint(pages)
    tenants.sign_in_endpoint = "notes.sign_in"
    tenants.answer_http_errors()
    tenants.answer_headers.add({"Content-Security-Policy": CONTENT_SECURITY_POLICY})
    tenants.each_tenant_command("digest")(write_digest)
    return app


def get_tenants() -> QuartTenants:
    """Return the extension of the app that serves this request."""
    tenants: QuartTenants = current_app.extensions["quart_tenants"]
    return tenants


@pages.get("/", host=QuartTenants.apex_host)
async def home() -> str:
    """Show the form of the sign-up."""
    return await render_template("sign_up.html")


@pages.post("/sign-up", host=QuartTenants.apex_host)
async def sign_up() -> ResponseReturnValue:
    """Make a tenant with its first user."""
    form = await request.form
    slug, email, password = form["slug"].strip().lower(), form["email"].strip().lower(), form["password"]
    if not email or not password:
        return await render_template("sign_up.html", error="Give an e-mail address and a password."), 400
    password_hash = await asyncio.to_thread(HASHER.hash, password)

    async def add_first_user(connection: Connection) -> None:
        await add_user(connection, email, password_hash, owner=True)

    try:
        tenant = await get_tenants().create(slug, fill=add_first_user)
    except TenantError as error:
        return await answer_tenant_error(error, "sign_up.html")
    return await render_template("signed_up.html", link=tenant_url(tenant, "notes.sign_in")), 201


async def add_user(connection: Connection, email: str, password_hash: str, *, owner: bool = False) -> bool:
    """Add a user to the tenant of *connection*; return whether there was none of that address."""
    added = await connection.fetchval(
        "INSERT INTO users (email, password_hash, owner) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING true",
        email,
        password_hash,
        owner,
    )
    return added is not None


@pages.get("/sign-in", host=QuartTenants.host)
async def sign_in() -> str:
    """Show the form to sign in."""
    return await render_template("sign_in.html")


@pages.post("/sign-in", host=QuartTenants.host)
async def check_sign_in() -> ResponseReturnValue:
    """Begin a session, if the password is right."""
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


@pages.post("/sign-out", host=QuartTenants.host)
async def sign_out() -> ResponseReturnValue:
    """End the session on every worker."""
    await end_session()
    return redirect(url_for(".sign_in"), 303)


async def check_password(password_hash: str, password: str) -> bool:
    """Return whether *password* is right. The hash takes long, so a thread computes it."""
    try:
        return await asyncio.to_thread(HASHER.verify, password_hash, password)
    except VerificationError:
        return False


@pages.get("/", host=QuartTenants.host)
@login_required
async def list_page() -> str:
    """Show the newest notes, or those in which the words of the search occur."""
    wanted = request.args.get("q", "")
    return await render_template("notes.html", notes=await find_notes(wanted), q=wanted, form_id=uuid.uuid4())


@pages.post("/notes", host=QuartTenants.host)
@login_required
async def write_note() -> ResponseReturnValue:
    """Save a note from the form."""
    form = await request.form
    form_id = form.get("form_id", type=uuid.UUID) or abort(400, "This form is broken. Load the page again.")
    await save_note(form["body"], form_id)
    return redirect(url_for(".list_page"), 303)


@pages.get("/api/notes", host=QuartTenants.host)
@login_required
async def list_json() -> ResponseReturnValue:
    """List the newest notes for a program."""
    return {"notes": await find_notes(request.args.get("q", ""))}


@pages.post("/api/notes", host=QuartTenants.host)
@login_required
async def write_json() -> ResponseReturnValue:
    """Save a note of a program's."""
    sent = await request.get_json()
    if not isinstance(sent, dict) or not isinstance(sent.get("body"), str):
        abort(400, 'Send JSON: {"body": "…"}.')
    await save_note(sent["body"], uuid.uuid4())
    return {}, 201


@pages.get("/notes/<int:number>", host=QuartTenants.host)
@login_required
async def note_page(number: int) -> str:
    """Show one note with its files."""
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


@pages.post("/notes/<int:number>/attachments", host=QuartTenants.host)
@login_required
async def attach(number: int) -> ResponseReturnValue:
    """Keep a file with a note."""
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
    return redirect(url_for(".note_page", number=number), 303)


@pages.get("/attachments/<int:number>", host=QuartTenants.host)
@login_required
async def download(number: int) -> ResponseReturnValue:
    """Send a file back."""
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


@pages.get("/notes.csv", host=QuartTenants.host)
@login_required
async def export() -> Response:
    """Send all notes as a table, for spreadsheets."""

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


@pages.websocket("/live", host=QuartTenants.host)
@login_required
async def live() -> None:
    """Tell an open page that there is a new note."""
    async with subscribe("notes") as messages:
        await websocket.send_json({"live": True})
        while True:
            try:
                message = await anext(messages)
            except MessagesLostError:
                message = {"reload": True}
            await websocket.send_json(message)


def get_signer() -> URLSafeTimedSerializer:
    """Return what signs the invitations of this tenant."""
    # The tenant's number is part of the key, so one tenant's invitation is worth nothing at another.
    return URLSafeTimedSerializer(str(current_app.secret_key), salt=f"invitation to {current_tenant.id}")


def read_invitation(token: str) -> str:
    """Return the e-mail address in an invitation."""
    try:
        return str(get_signer().loads(token, max_age=INVITATION_SECONDS))
    except BadSignature:
        abort(404, "This invitation is not valid any more. Ask for a new one.")


@pages.post("/invitations", host=QuartTenants.host)
@login_required
async def invite() -> ResponseReturnValue:
    """Show the link by which a colleague joins."""
    email = (await request.form)["email"].strip().lower()
    link = tenant_url(current_tenant.slug, "notes.join", token=get_signer().dumps(email))
    return await render_template("invited.html", email=email, link=link)


@pages.get("/invitations/<token>", host=QuartTenants.host)
async def join(token: str) -> str:
    """Show the form to join."""
    return await render_template("join.html", email=read_invitation(token))


@pages.post("/invitations/<token>", host=QuartTenants.host)
async def accept(token: str) -> ResponseReturnValue:
    """Add the colleague to this tenant."""
    email = read_invitation(token)
    password = (await request.form)["password"]
    if not password:
        return await render_template("join.html", email=email, error="Choose a password."), 400
    password_hash = await asyncio.to_thread(HASHER.hash, password)
    async with tenant_connection() as connection:
        if not await add_user(connection, email, password_hash):
            abort(409, "You have joined already. Sign in.")
    return redirect(url_for(".sign_in"), 303)


@pages.post("/domains", host=QuartTenants.host)
@login_required
async def claim_domain() -> ResponseReturnValue:
    """Let a customer use a domain of their own."""
    domain = parse_domain((await request.form)["domain"])
    async with tenant_connection(read_only=True) as connection:
        if not await connection.fetchval("SELECT owner FROM users WHERE id = $1", int(get_session().user or 0)):
            abort(403, "Ask the one who signed up: only they may do this.")
    tenants = get_tenants()
    await add_domain(tenants.database, current_tenant.slug, domain, settings=tenants.settings)
    return redirect(url_for(".list_page"), 303)


async def check_operator() -> None:
    """Let only those pass who know OPERATOR_PASSWORD."""
    given = request.authorization
    wanted = current_app.config["OPERATOR_PASSWORD"]
    async with login_attempt("operator", event="operator_login") as attempt:
        if given is None or wanted is None or not is_same(given.password or "", str(wanted)):
            raise InvalidCredentialsError
        await attempt.forgive()


@pages.get("/operators", host=QuartTenants.apex_host)
async def operators() -> ResponseReturnValue:
    """Show all tenants with the number of their notes."""
    if request.authorization is None:
        return "Operators only.", 401, {"WWW-Authenticate": 'Basic realm="operators"'}
    await check_operator()
    async with shared_connection() as connection:
        plans = await connection.fetch("SELECT name FROM plans ORDER BY notes")
    return await render_template("operators.html", counts=await for_each_tenant(count_notes), plans=plans)


@pages.post("/operators/<slug>", host=QuartTenants.apex_host)
async def change_plan(slug: str) -> ResponseReturnValue:
    """Give a tenant another plan."""
    await check_operator()
    await change_tenant_settings(get_tenants().database, parse_slug(slug), {"plan": (await request.form)["plan"]})
    return redirect(url_for(".operators"), 303)


def is_same(given: str, wanted: str) -> bool:
    """Compare two secrets in a time that tells nothing about them."""
    return hmac.compare_digest(given.encode(), wanted.encode())


async def count_notes(tenant: Tenant) -> int:
    """Return how many notes *tenant* has."""
    async with tenant_connection(read_only=True) as connection:
        return int(await connection.fetchval("SELECT count(*) FROM notes"))


async def write_digest(tenant: Tenant) -> str:
    """Print for each tenant how many notes are new today, with a link to them."""
    async with tenant_connection(read_only=True) as connection:
        new = await connection.fetchval("SELECT count(*) FROM notes WHERE written_at > now() - interval '1 day'")
    return f"{new} new at {tenant_url(tenant, 'notes.list_page')}"

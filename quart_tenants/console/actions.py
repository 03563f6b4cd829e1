"""List what an operator can do: each action with the command that does the same."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import click

from quart_tenants.console.console import Console
from quart_tenants.errors import InvalidRequestError
from quart_tenants.postgres.fleet.tenant_life import TenantLife
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.postgres.sessions.session_ends import end_user_sessions
from quart_tenants.postgres.tenants.lifecycle import rename_tenant, resume_tenant, suspend_tenant
from quart_tenants.postgres.tenants.purge import find_purgeable
from quart_tenants.postgres.tenants.trash import drop_tenant, undrop_tenant
from quart_tenants.tenant import Slug, Tenant, parse_slug
from quart_tenants.web.commands.backups import backup_command, restore_command
from quart_tenants.web.commands.lifecycle import DAYS, rename_command, resume_command, suspend_command
from quart_tenants.web.commands.migrate import migrate_command
from quart_tenants.web.commands.sizes import sizes_command
from quart_tenants.web.commands.status import status_command
from quart_tenants.web.commands.trash import drop_command, purge_command, undrop_command
from quart_tenants.web.lifecycle_hooks import TenantEvent

Values = Mapping[str, str]
"""What an operator has filled in, by field. What was left empty is not in it."""

_LONGEST = 1000  # characters of a field


@dataclass(frozen=True)
class Done:
    """What was done, and the slug under which the tenant is found now."""

    sentence: str
    slug: Slug


@dataclass(frozen=True)
class Field:
    """What an action needs to know.

    Attributes:
        name: Its name in the form.
        label: Its name for people.
        hint: What to fill in.
        kind: `text`, `slug`, `days` or `yes`, which is a box to tick.
        required: Whether it may not be left empty.
    """

    name: str
    label: str
    hint: str = ""
    kind: str = "text"
    required: bool = True


@dataclass(frozen=True)
class Action:
    """Something that an operator can do.

    Attributes:
        name: In the address of its page.
        title: For people.
        help: What the command says of itself.
        make_arguments: Returns the arguments of the command, of the tenant's slug and the values.
        act: Does it; None where the command itself is to run, because it takes long.
        fields: What it needs to know.
        asks: Whether it asks for the tenant's name, as the command does, or for the number of the tenants.
        find_concerned: Returns the names of the tenants that it is about, where that is not one.
        for_users: Whether its command exists only where the app's users are the reference app's.
        keep_output: Whether the command prints a document.
    """

    name: str
    title: str
    help: str
    make_arguments: Callable[[str, Values], list[str]]
    act: Callable[[Console, Slug, Values], Awaitable[Done]] | None = None
    fields: tuple[Field, ...] = ()
    asks: bool = False
    find_concerned: Callable[[Console, Values], Awaitable[list[str]]] | None = None
    for_users: bool = False
    keep_output: bool = False

    @property
    def paragraphs(self) -> list[str]:
        """The help, without the breaks of its lines."""
        return [" ".join(part.split()) for part in self.help.split("\n\n")]


def parse_values(action: Action, given: Mapping[str, str]) -> Values:
    """Return what was filled in.

    Raises:
        InvalidRequestError: A field is empty, too long, no line of text, or no number of days.
        InvalidSlugError: A field is no slug.
    """
    values = {}
    for field in action.fields:
        text = given.get(field.name, "").strip()
        if len(text) > _LONGEST or not text.isprintable():
            raise InvalidRequestError(f"{field.label}: give one line of at most {_LONGEST} characters")
        if not text:
            if field.required:
                raise InvalidRequestError(f"{field.label} is empty")
            continue
        if field.kind == "slug":
            parse_slug(text)
        elif field.kind == "days":
            try:
                DAYS.convert(text, None, None)
            except click.BadParameter as error:
                raise InvalidRequestError(f"{field.label}: {error.message}") from error
        values[field.name] = text
    return values


async def _suspend(console: Console, slug: Slug, _: Values) -> Done:
    tenant = await suspend_tenant(console.database, slug)
    return Done(f"suspended {tenant.slug}", tenant.slug)


async def _resume(console: Console, slug: Slug, _: Values) -> Done:
    tenant = await resume_tenant(console.database, slug)
    return Done(f"resumed {tenant.slug}", tenant.slug)


async def _rename(console: Console, slug: Slug, values: Values) -> Done:
    days = float(values["redirect_days"]) if "redirect_days" in values else None
    new = parse_slug(values["new"])
    tenant = await rename_tenant(console.database, slug, new, settings=console.settings, redirect_days=days)
    await _tell_hooks(console, "renamed", tenant, former_slug=slug)
    return Done(f"renamed {slug} to {tenant.slug} (schema {tenant.schema})", tenant.slug)


async def _drop(console: Console, slug: Slug, values: Values) -> Done:
    tenant = await drop_tenant(console.database, slug, including_dependents="including_dependents" in values)
    await _tell_hooks(console, "dropped", tenant)
    return Done(f"dropped {tenant.slug} (schema {tenant.schema})", tenant.slug)


async def _undrop(console: Console, slug: Slug, _: Values) -> Done:
    tenant = await undrop_tenant(console.database, slug, settings=console.settings)
    return Done(f"brought back {tenant.slug} (schema {tenant.schema})", tenant.slug)


async def _end_sessions(console: Console, slug: Slug, values: Values) -> Done:
    # Not only of a user who exists: one who was deleted may still have a session.
    tenant = await get_tenant(console.database, slug)
    await end_user_sessions(console.database, tenant, values["username"])
    return Done(f"ended all sessions of {values['username']} at {slug}", slug)


async def _tell_hooks(console: Console, kind: str, tenant: Tenant, former_slug: Slug | None = None) -> None:
    known = None if kind == "dropped" else tenant
    await console.run_hooks(kind, TenantEvent(tenant.id, tenant.slug, known, former_slug=former_slug))


async def _find_purgeable(console: Console, values: Values) -> list[str]:
    days = float(values["older_than"]) if "older_than" in values else None
    found = await find_purgeable(console.database, settings=console.settings, older_than_days=days)
    return [tenant.slug for tenant in found]


_SUSPEND = Action("suspend", "Suspend", suspend_command.help or "", lambda slug, _: ["suspend", slug], _suspend)
_RESUME = Action("resume", "Resume", resume_command.help or "", lambda slug, _: ["resume", slug], _resume)
_RENAME = Action(
    "rename",
    "Rename",
    rename_command.help or "",
    lambda slug, values: [
        "rename",
        slug,
        values["new"],
        *([f"--redirect-days={values['redirect_days']}"] if "redirect_days" in values else []),
    ],
    _rename,
    fields=(
        Field("new", "The new subdomain", kind="slug"),
        Field(
            "redirect_days",
            "For how many days the old address leads to the new one",
            "Empty: as TENANTS_REDIRECT_DAYS says.",
            kind="days",
            required=False,
        ),
    ),
)
_END_SESSIONS = Action(
    "end-sessions",
    "End a user's sessions",
    "End all sessions of a user, on every worker within two seconds.",
    lambda slug, values: ["user", "logout", slug, values["username"]],
    _end_sessions,
    fields=(Field("username", "The user", "As the app calls the user in a session: see `start_session`."),),
    for_users=True,
)
_DROP = Action(
    "drop",
    "Drop",
    drop_command.help or "",
    lambda slug, values: [
        "drop",
        slug,
        *(["--including-dependents"] if "including_dependents" in values else []),
        "--yes",
    ],
    _drop,
    fields=(
        Field(
            "including_dependents",
            "Drop views and foreign keys of others that depend on the tenant's tables, too",
            kind="yes",
            required=False,
        ),
    ),
    asks=True,
)
_UNDROP = Action("undrop", "Undrop", undrop_command.help or "", lambda slug, _: ["undrop", slug], _undrop)
_MIGRATE = Action("migrate", "Migrate", migrate_command.help or "", lambda slug, _: ["migrate", f"--tenant={slug}"])
_BACKUP = Action(
    "backup",
    "Back up",
    backup_command.help or "",
    lambda slug, values: ["backup", slug, f"--output={values['file']}"],
    fields=(Field("file", "The file to write", "A path on this machine. It must not exist yet."),),
)
_PURGE = Action(
    "purge", "Delete for good", purge_command.help or "", lambda slug, _: ["purge", slug, "--yes"], asks=True
)

FLEET_ACTIONS = {
    action.name: action
    for action in (
        Action("migrate", "Migrate all tenants", migrate_command.help or "", lambda _, __: ["migrate"]),
        Action(
            "compare",
            "Compare the tables of all tenants",
            status_command.help or "",
            lambda _, __: ["status", "--json"],
            keep_output=True,
        ),
        Action("sizes", "Measure all tenants", sizes_command.help or "", lambda _, __: ["sizes"]),
        Action(
            "backup",
            "Back up all tenants",
            backup_command.help or "",
            lambda _, values: ["backup", "--all", f"--output={values['folder']}"],
            fields=(Field("folder", "The folder for the backups", "A path on this machine."),),
        ),
        Action(
            "restore",
            "Restore a backup as a new tenant",
            restore_command.help or "",
            lambda _, values: ["restore", f"--as={values['slug']}", "--", values["file"]],
            fields=(
                Field("file", "The backup", "A path on this machine."),
                Field("slug", "The subdomain of the new tenant", kind="slug"),
            ),
        ),
        Action(
            "purge",
            "Empty the trash",
            purge_command.help or "",
            lambda _, values: [
                "purge",
                *([f"--older-than={values['older_than']}"] if "older_than" in values else []),
                "--yes",
            ],
            fields=(
                Field(
                    "older_than",
                    "Only what was dropped more days ago than this",
                    "Empty: as TENANTS_TRASH_DAYS says.",
                    kind="days",
                    required=False,
                ),
            ),
            asks=True,
            find_concerned=_find_purgeable,
        ),
    )
}
"""By name: what is about many tenants, or about none yet."""

TENANT_ACTIONS = {
    action.name: action
    for action in (_SUSPEND, _RESUME, _RENAME, _END_SESSIONS, _MIGRATE, _BACKUP, _DROP, _UNDROP, _PURGE)
}
"""By name: what is about one tenant."""


def list_actions(life: TenantLife) -> list[Action]:
    """Return what makes sense for a tenant as it is. Another action says by its error why it does not."""
    if life.dropped_at is not None:
        return [_PURGE] if life.half_purged else [_UNDROP, _PURGE]
    return [_RESUME if life.suspended_at else _SUSPEND, _RENAME, _END_SESSIONS, _MIGRATE, _BACKUP, _DROP]

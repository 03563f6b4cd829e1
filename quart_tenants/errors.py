"""Name everything that can go wrong with a tenant. Pure: no I/O.

The first line of each docstring is a sentence that a visitor may read. The message of an error is for the log and for
operators, unless the class says otherwise. `code` is stable API.
"""


class TenantError(Exception):
    """Something is wrong with a tenant.

    Attributes:
        code: A name for programs, which never changes.
        status: The HTTP status of an answer to this error.

    Example:
        ```python
        @app.errorhandler(TenantError)
        async def count_errors(error: TenantError) -> ResponseReturnValue:
            print(error.code, error.status)
            return await answer_tenant_error(error)
        ```
    """

    code = "tenant_error"
    status = 500
    # Whether the message is written for the visitor: it names nothing that the visitor did not name.
    _message_is_for_visitors = False
    # What the visitor reads instead, if it is neither the message nor the first line of the docstring.
    _for_visitor: str | None = None

    def __init_subclass__(cls, *, code: str = "", status: int = 0, for_visitors: bool | None = None) -> None:
        """Note what the first line of the class says; what it leaves out is as in the class above."""
        cls.code = code or cls.code
        cls.status = status or cls.status
        if for_visitors is not None:
            cls._message_is_for_visitors = for_visitors

    @property
    def visitor_text(self) -> str:
        """A sentence that a visitor may read. It names no command, no schema and no other tenant."""
        if self._message_is_for_visitors:
            return str(self)
        # Python leaves docstrings out with -OO.
        return self._for_visitor or (type(self).__doc__ or "Something went wrong.").partition("\n")[0]


# Setting up


class SettingError(TenantError, code="invalid_setting"):
    """A setting is missing or wrong."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting} {problem}")
        self.setting = setting


class MigrationFileError(TenantError, code="invalid_migration_file"):
    """A migration file is misnamed, missing or was changed."""


class MigrationFailedError(TenantError, code="migration_failed"):
    """A migration failed."""

    def __init__(self, schema: str, migration: str, reason: str, *, kept: str = "was rolled back") -> None:
        super().__init__(f"migration {migration} failed in schema {schema!r} and {kept}: {reason}")
        self.schema = schema
        self.migration = migration
        self.reason = reason


class EmbeddedPostgresError(TenantError, code="embedded_postgres"):
    """The embedded PostgreSQL cannot run here."""


class AddressInUseError(TenantError, code="address_in_use"):
    """The address to serve on is taken."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"cannot serve on {address}: {reason}; choose another with --port, or end what uses it")
        self.address = address


# Names and addresses


class InvalidSlugError(TenantError, code="invalid_slug", status=400):
    """The name cannot be a tenant's subdomain."""

    def __init__(self, text: str, reason: str, *, for_operators: str = "") -> None:
        self._for_visitor = f"{text!r} cannot be a tenant: {reason}"
        super().__init__(self._for_visitor + for_operators)
        self.text = text


class InvalidSchemaNameError(TenantError, code="invalid_schema_name", status=400):
    """The name cannot be a tenant's schema."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"{text!r} cannot be a tenant's schema: {reason}")
        self.text = text
        self.reason = reason


class InvalidNameError(TenantError, code="invalid_name", status=400, for_visitors=True):
    """The name cannot be a tenant's display name."""


class InvalidSettingsError(TenantError, code="invalid_settings", status=400):
    """These cannot be a tenant's settings."""


class InvalidDomainError(TenantError, code="invalid_domain", status=400, for_visitors=True):
    """The name cannot be a tenant's domain."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"{text!r} cannot be a tenant's domain: {reason}")
        self.text = text


class InvalidPathError(TenantError, code="invalid_path", status=400):
    """This cannot be the name of a file."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} cannot be the name of a tenant's file: use a relative path without ..")
        self.name = name


class HookFailedError(TenantError, code="hook_failed"):
    """Something that follows a change of a tenant has failed."""

    def __init__(self, slug: str, kind: str, hooks: list[str]) -> None:
        super().__init__(
            f"tenant {slug!r} was {kind}, and that stays; but these hooks of the app failed: {', '.join(hooks)} "
            "(the log says why)"
        )
        self.slug = slug
        self.hooks = hooks


class UnknownDomainError(TenantError, code="unknown_domain", status=404, for_visitors=True):
    """No tenant has this domain."""

    def __init__(self, domain: str) -> None:
        super().__init__(f"no tenant has the domain {domain!r}, or claims it")
        self.domain = domain


class DomainTakenError(TenantError, code="domain_taken", status=409):
    """This domain is taken."""

    def __init__(self, domain: str) -> None:
        super().__init__(f"the domain {domain!r} is another tenant's; the command `domain remove {domain}` frees it")
        self.domain = domain


class DomainNotVerifiedError(TenantError, code="domain_not_verified", status=409):
    """DNS does not say yet that this domain is the tenant's."""

    def __init__(self, domain: str, record_name: str, record_value: str) -> None:
        self._for_visitor = (
            f"{domain!r} is not verified yet: make a DNS record of type TXT named {record_name} "
            f"with the value {record_value}"
        )
        again = "and run the command again (DNS may take minutes to show a new record)"
        super().__init__(f"{self._for_visitor} {again}")
        self.domain = domain
        self.record_name = record_name
        self.record_value = record_value


class DnsUnavailableError(TenantError, code="dns_unavailable", status=503):
    """DNS cannot be asked; try again shortly."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"DNS cannot be asked for {name}: {reason}; TENANTS_DNS_SERVERS names the servers to ask")
        self.name = name


class UnknownHostError(TenantError, code="unknown_host", status=404, for_visitors=True):
    """Nothing is served at this host."""

    def __init__(self, host: str) -> None:
        super().__init__(f"nothing is served at {host!r}")
        self.host = host


class UnknownTenantError(TenantError, code="unknown_tenant", status=400, for_visitors=True):
    """No tenant answers at this address.

    Example:
        ```python
        try:
            async with tenant_connection("acme") as connection:
                await connection.execute("SELECT 1")
        except UnknownTenantError as error:
            print(error.address)
        ```
    """

    def __init__(self, address: str) -> None:
        super().__init__(f"no tenant answers at {address!r}")
        self.address = address


class TenantExistsError(TenantError, code="tenant_exists", status=409):
    """This name is taken."""

    def __init__(self, slug: str, schema: str) -> None:
        super().__init__(f"tenant {slug!r} exists already (schema {schema})")
        self.slug = slug
        self.schema = schema


class RecentlyDroppedError(TenantError, code="recently_dropped", status=409):
    """This name was in use until a moment ago; try again shortly."""

    def __init__(self, name: str, wait: float) -> None:
        remedy = (
            f"may be remembered; try again in {wait:.0f} s"
            if wait > 0
            else "a transaction that began then is still open; try again when it has ended"
        )
        super().__init__(f"{name!r} was another tenant's until a moment ago, and {remedy}")
        self.name = name
        self.wait = wait


class TenantInTrashError(TenantError, code="tenant_in_trash", status=409):
    """This name is taken."""

    def __init__(self, slug: str) -> None:
        super().__init__(
            f"tenant {slug!r} is in the trash; the command `undrop {slug}` brings it back, "
            f"`purge {slug}` deletes it for good"
        )
        self.slug = slug


class TenantNotInTrashError(TenantError, code="tenant_not_in_trash", status=404):
    """No tenant of this name is in the trash."""

    def __init__(self, slug: str) -> None:
        super().__init__(f"no tenant {slug!r} is in the trash; the command `list --trash` shows what does")
        self.slug = slug


class DependentsError(TenantError, code="dependents", status=409):
    """Something outside this tenant depends on it."""

    def __init__(self, slug: str, dependents: str, *, removable: bool) -> None:
        if removable:
            remedy = "they hold no data of their own: --including-dependents drops them, too"
        else:
            remedy = "dropping the tenant would delete what is not the tenant's: change that first"
        super().__init__(f"what depends on tenant {slug!r} outside its schema: {dependents}; {remedy}")
        self.slug = slug


class FormerSlugError(TenantError, code="former_slug", status=409):
    """This name is taken."""

    def __init__(self, slug: str, now: str, until: str) -> None:
        super().__init__(f"{slug!r} leads to tenant {now!r}, which had this name, until {until}")
        self.slug = slug
        self.now = now


class TenantBusyError(TenantError, code="tenant_busy", status=409):
    """Something else is being done to this tenant; try again shortly."""

    def __init__(self, slug: str, in_the_way: str = "") -> None:
        why = (
            f"cannot be changed now: {in_the_way}" if in_the_way else "is being migrated or changed by another command"
        )
        super().__init__(f"tenant {slug!r} {why}; try again shortly")
        self.slug = slug
        # Who has the lock that was not free, for operators.
        self.in_the_way = in_the_way


class ConsoleBusyError(TenantError, code="console_busy", status=409):
    """Enough is being done already; try again shortly."""

    def __init__(self, commands: list[str]) -> None:
        super().__init__(
            f"{len(commands)} commands of this console are running ({'; '.join(commands)}), and more at a time would "
            "be too many; try again when one of them has ended"
        )
        self.commands = tuple(commands)


class SchemaExistsError(TenantError, code="schema_exists", status=409):
    """This name is taken."""

    def __init__(self, schema: str) -> None:
        super().__init__(f"schema {schema!r} exists already; the command `adopt {schema}` makes it a tenant as it is")
        self.schema = schema


class UnknownSchemaError(TenantError, code="unknown_schema", status=404):
    """The schema does not exist, or may not be used."""

    def __init__(self, schema: str, reason: str) -> None:
        super().__init__(f"schema {schema!r} cannot be used: {reason}")
        self.schema = schema


class BackupFileError(TenantError, code="invalid_backup"):
    """The file cannot be used as a tenant's backup."""

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(f"{file} {problem}")
        self.file = file


class ClientProgramError(TenantError, code="client_program"):
    """A program of PostgreSQL that makes or reads backups is missing or failed."""


# Requests


class NoTenantError(TenantError, RuntimeError, code="no_tenant"):
    """No tenant was named where one is needed.

    Example:
        ```python
        try:
            print(current_tenant.name)
        except NoTenantError:
            print("this is the domain itself, or no request")
        ```
    """

    # Also a RuntimeError, which is the only error that Werkzeug's proxies pass over when they are merely looked at:
    # by help(), isinstance(), mock.patch(), doctest, and Quart's search for an app factory.


class WrongTenantError(TenantError, code="wrong_tenant", status=400, for_visitors=True):
    """This belongs to another tenant."""


class OtherTenantError(WrongTenantError, code="other_tenant", status=500, for_visitors=False):
    """Something went wrong on our side."""

    # The app asked for another tenant than the one that it works for, which is a bug of the app.


class NotLoggedInError(TenantError, code="not_logged_in", status=401, for_visitors=True):
    """Log in first.

    Example:
        ```python
        user = get_session().user
        if user is None:
            raise NotLoggedInError
        ```
    """

    def __init__(self) -> None:
        super().__init__("log in first")


class InvalidCredentialsError(TenantError, code="invalid_credentials", status=401, for_visitors=True):
    """The user name or the password is wrong.

    Example:
        ```python
        async with login_attempt("ada") as attempt:
            if not await is_password_right("ada"):
                raise InvalidCredentialsError
            await attempt.succeed("7")
        ```
    """

    def __init__(self) -> None:
        super().__init__("the user name or the password is wrong")


class InvalidRequestError(TenantError, code="invalid_request", status=400, for_visitors=True):
    """The request does not have the expected form."""


class InvalidUserError(TenantError, code="invalid_user", status=400, for_visitors=True):
    """The user name or the password cannot be stored."""


class UserExistsError(TenantError, code="user_exists", status=409):
    """A user of this name exists."""

    def __init__(self, tenant: str, username: str) -> None:
        super().__init__(f"tenant {tenant!r} has a user {username!r} already")
        self.tenant = tenant
        self.username = username


class UnknownUserError(TenantError, code="unknown_user", status=404):
    """This tenant has no user of that name."""

    def __init__(self, tenant: str, username: str) -> None:
        super().__init__(f"tenant {tenant!r} has no user {username!r}")
        self.tenant = tenant
        self.username = username


class RequestFromElsewhereError(TenantError, code="request_from_elsewhere", status=403, for_visitors=True):
    """A page of another site cannot do this here."""


class TooManyLoginsError(TenantError, code="too_many_logins", status=429, for_visitors=True):
    """Too many logins have failed; wait a moment."""

    def __init__(self, retry_after: int, what: str = "logins have failed") -> None:
        super().__init__(f"too many {what}; the next one may come in {retry_after} s")
        # Seconds.
        self.retry_after = retry_after


class SessionUncheckedError(TenantError, code="session_unchecked", status=503):
    """Whether this session was ended cannot be known at the moment; try again shortly."""


class PasswordTooLongError(TenantError, code="password_too_long", status=400, for_visitors=True):
    """The password is too long."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"a password has at most {limit} characters")
        self.limit = limit


class HashQueueFullError(TenantError, code="hash_queue_full", status=503):
    """Too many logins are being checked; try again shortly."""


class SchemaBehindError(TenantError, code="schema_behind", status=503):
    """This site is being updated; try again shortly."""

    _which = "the tables of tenant {slug!r}"

    def __init__(self, slug: str, version: int, minimum: int) -> None:
        which = self._which.format(slug=slug)
        super().__init__(
            f"{which} are at version {version:04}, and this app needs {minimum:04}: run the command `migrate`"
        )
        self.slug = slug
        self.version = version
        self.minimum = minimum


class SharedSchemaBehindError(SchemaBehindError, code="shared_schema_behind"):
    """This site is being updated; try again shortly."""

    _which = "the shared tables"


class SharedNameError(TenantError, code="shared_name"):
    """A name is in a tenant's schema and in a shared one."""


class MessageTooLongError(TenantError, code="message_too_long"):
    """The message is too long."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"a message has at most {limit} bytes as JSON, with its topic; send an id instead of the content"
        )
        self.limit = limit


class MessagesLostError(TenantError, code="messages_lost", status=503):
    """Messages may be missing; load the page again."""


# The database


class DatabaseUnavailableError(TenantError, code="database_unavailable", status=503):
    """The database cannot be reached; try again shortly.

    Example:
        ```python
        try:
            async with tenant_connection("acme") as connection:
                await connection.execute("SELECT 1")
        except DatabaseUnavailableError as error:
            print(error.visitor_text)
        ```
    """

    def __init__(self, message: str, *, lost: bool = False) -> None:
        super().__init__(message)
        # Whether an open connection broke. Then the next connection may work.
        self.lost = lost


class DatabaseFullError(TenantError, code="database_full", status=503):
    """The database has no room for this; try again shortly."""

    # Its disk is full, or its memory, or a table of its own such as that of locks.


class DatabaseTimeoutError(TenantError, TimeoutError, code="database_timeout", status=503):
    """The database took too long; try again shortly."""


class PoolExhaustedError(TenantError, code="pool_exhausted", status=503):
    """All database connections are in use; try again shortly.

    Example:
        ```python
        @app.errorhandler(PoolExhaustedError)
        async def say_busy(error: PoolExhaustedError) -> ResponseReturnValue:
            return await answer_tenant_error(error)
        ```
    """


class TenantOverShareError(TenantError, code="tenant_over_share", status=429):
    """Too many requests for this tenant wait for the database; try again shortly."""


class RequestTimeoutError(TenantError, TimeoutError, code="request_timeout", status=503):
    """The request took too long and was cancelled; try again shortly."""


class RolesNotReadyError(TenantError, code="roles_not_ready", status=503):
    """The roles of the tenants are not set up."""


class LeakError(TenantError, code="leak"):
    """The database would let one tenant see another one's rows."""


class DatabaseRefusedError(TenantError, code="database_refused"):
    """The database refused a statement."""


class TransactionLostError(TenantError, code="transaction_lost"):
    """The transaction was not saved."""


class RegistryNotReadyError(TenantError, code="registry_not_ready", status=503):
    """The tenant registry is not ready."""


class RegistryStaleError(TenantError, code="registry_stale", status=503):
    """The tenant registry cannot be read; try again shortly."""

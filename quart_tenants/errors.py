"""Name everything that can go wrong with a tenant. Knows neither HTTP nor SQL.

The first line of each docstring is a sentence that a visitor may read: it is the public text of an answer from 500 on,
whose details are only in the log. `code` is stable API.
"""


class TenantError(Exception):
    """Something is wrong with a tenant."""

    code = "tenant_error"


# Setting up


class SettingError(TenantError):
    """A setting is missing or wrong."""

    code = "invalid_setting"

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting} {problem}")
        self.setting = setting


class MigrationFileError(TenantError):
    """A migration file is misnamed, missing or was changed."""

    code = "invalid_migration_file"


class MigrationFailedError(TenantError):
    """A migration failed."""

    code = "migration_failed"

    def __init__(self, schema: str, migration: str, reason: str, *, kept: str | None = None) -> None:
        outcome = "was rolled back" if kept is None else kept
        super().__init__(f"migration {migration} failed in schema {schema!r} and {outcome}: {reason}")
        self.schema = schema
        self.migration = migration
        self.reason = reason


class EmbeddedPostgresError(TenantError):
    """The embedded PostgreSQL cannot run here."""

    code = "embedded_postgres"


class AddressInUseError(TenantError):
    """The address to serve on is taken."""

    code = "address_in_use"

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"cannot serve on {address}: {reason}; choose another with --port, or end what uses it")
        self.address = address


# Names and addresses


class InvalidSlugError(TenantError):
    """The name cannot be a tenant's subdomain."""

    code = "invalid_slug"

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"{text!r} cannot be a tenant: {reason}")
        self.text = text


class InvalidSchemaNameError(TenantError):
    """The name cannot be a tenant's schema."""

    code = "invalid_schema_name"

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"{text!r} cannot be a tenant's schema: {reason}")
        self.text = text
        self.reason = reason


class InvalidNameError(TenantError):
    """The name cannot be a tenant's display name."""

    code = "invalid_name"


class InvalidDomainError(TenantError):
    """The name cannot be a tenant's domain."""

    code = "invalid_domain"

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"{text!r} cannot be a tenant's domain: {reason}")
        self.text = text


class UnknownDomainError(TenantError):
    """No tenant has this domain."""

    code = "unknown_domain"

    def __init__(self, domain: str) -> None:
        super().__init__(f"no tenant has the domain {domain!r}, or claims it")
        self.domain = domain


class DomainTakenError(TenantError):
    """This domain is another tenant's."""

    code = "domain_taken"

    def __init__(self, domain: str) -> None:
        super().__init__(f"the domain {domain!r} is another tenant's; the command `domain remove {domain}` frees it")
        self.domain = domain


class DomainNotVerifiedError(TenantError):
    """DNS does not say yet that this domain is the tenant's."""

    code = "domain_not_verified"

    def __init__(self, domain: str, record_name: str, record_value: str) -> None:
        super().__init__(
            f"{domain!r} is not verified yet: make a DNS record of type TXT named {record_name} with the value "
            f"{record_value} and run the command again (DNS may take minutes to show a new record)"
        )
        self.domain = domain
        self.record_name = record_name
        self.record_value = record_value


class DnsUnavailableError(TenantError):
    """DNS cannot be asked; try again shortly."""

    code = "dns_unavailable"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"DNS cannot be asked for {name}: {reason}; TENANTS_DNS_SERVERS names the servers to ask")
        self.name = name


class UnknownHostError(TenantError):
    """Nothing is served at this host."""

    code = "unknown_host"

    def __init__(self, host: str) -> None:
        super().__init__(f"nothing is served at {host!r}")
        self.host = host


class UnknownTenantError(TenantError):
    """No tenant answers at this address."""

    code = "unknown_tenant"

    def __init__(self, address: str) -> None:
        super().__init__(f"no tenant answers at {address!r}")
        self.address = address


class TenantExistsError(TenantError):
    """A tenant of this name exists."""

    code = "tenant_exists"

    def __init__(self, slug: str, schema: str) -> None:
        super().__init__(f"tenant {slug!r} exists already (schema {schema})")
        self.slug = slug
        self.schema = schema


class RecentlyDroppedError(TenantError):
    """This name was another tenant's until a moment ago; try again shortly."""

    code = "recently_dropped"

    def __init__(self, name: str, wait: float) -> None:
        remedy = (
            f"may be remembered; try again in {wait:.0f} s"
            if wait > 0
            else "a transaction that began then is still open; try again when it has ended"
        )
        super().__init__(f"{name!r} was another tenant's until a moment ago, and {remedy}")
        self.name = name
        self.wait = wait


class TenantInTrashError(TenantError):
    """A tenant of this name is in the trash."""

    code = "tenant_in_trash"

    def __init__(self, slug: str) -> None:
        super().__init__(
            f"tenant {slug!r} is in the trash; the command `undrop {slug}` brings it back, "
            f"`purge {slug}` deletes it for good"
        )
        self.slug = slug


class TenantNotInTrashError(TenantError):
    """No tenant of this name is in the trash."""

    code = "tenant_not_in_trash"

    def __init__(self, slug: str) -> None:
        super().__init__(f"no tenant {slug!r} is in the trash; the command `list --trash` shows what does")
        self.slug = slug


class FormerSlugError(TenantError):
    """This name still leads to a tenant that was renamed."""

    code = "former_slug"

    def __init__(self, slug: str, now: str, until: str) -> None:
        super().__init__(f"{slug!r} leads to tenant {now!r}, which had this name, until {until}")
        self.slug = slug
        self.now = now


class TenantBusyError(TenantError):
    """Something else is being done to this tenant; try again shortly."""

    code = "tenant_busy"

    def __init__(self, slug: str) -> None:
        super().__init__(f"tenant {slug!r} is being migrated or changed by another command; try again shortly")
        self.slug = slug


class SchemaExistsError(TenantError):
    """The schema exists already."""

    code = "schema_exists"

    def __init__(self, schema: str) -> None:
        super().__init__(f"schema {schema!r} exists already; the command `adopt {schema}` makes it a tenant as it is")
        self.schema = schema


class UnknownSchemaError(TenantError):
    """The schema does not exist, or may not be used."""

    code = "unknown_schema"

    def __init__(self, schema: str, reason: str) -> None:
        super().__init__(f"schema {schema!r} cannot be used: {reason}")
        self.schema = schema


class BackupFileError(TenantError):
    """The file cannot be used as a tenant's backup."""

    code = "invalid_backup"

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(f"{file} {problem}")
        self.file = file


class ClientProgramError(TenantError):
    """A program of PostgreSQL that makes or reads backups is missing or failed."""

    code = "client_program"


# Requests


class NoTenantError(TenantError, RuntimeError):
    """No tenant was named where one is needed."""

    # Also a RuntimeError, which is the only error that Werkzeug's proxies pass over when they are merely looked at:
    # by help(), isinstance(), mock.patch(), doctest, and Quart's search for an app factory.

    code = "no_tenant"


class WrongTenantError(TenantError):
    """This belongs to another tenant."""

    code = "wrong_tenant"


class NotLoggedInError(TenantError):
    """Log in first."""

    code = "not_logged_in"

    def __init__(self) -> None:
        super().__init__("log in first")


class InvalidCredentialsError(TenantError):
    """The user name or the password is wrong."""

    code = "invalid_credentials"

    def __init__(self) -> None:
        super().__init__("the user name or the password is wrong")


class InvalidRequestError(TenantError):
    """The request does not have the expected form."""

    code = "invalid_request"


class InvalidUserError(TenantError):
    """The user name or the password cannot be stored."""

    code = "invalid_user"


class UserExistsError(TenantError):
    """A user of this name exists."""

    code = "user_exists"

    def __init__(self, tenant: str, username: str) -> None:
        super().__init__(f"tenant {tenant!r} has a user {username!r} already")
        self.tenant = tenant
        self.username = username


class UnknownUserError(TenantError):
    """This tenant has no user of that name."""

    code = "unknown_user"

    def __init__(self, tenant: str, username: str) -> None:
        super().__init__(f"tenant {tenant!r} has no user {username!r}")
        self.tenant = tenant
        self.username = username


class RequestFromElsewhereError(TenantError):
    """A page of another site cannot do this here."""

    code = "request_from_elsewhere"


class TooManyLoginsError(TenantError):
    """Too many logins have failed; wait a moment."""

    code = "too_many_logins"

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many logins have failed; the next one may come in {retry_after} s")
        # Seconds.
        self.retry_after = retry_after


class SessionUncheckedError(TenantError):
    """Whether this session was ended cannot be known at the moment; try again shortly."""

    code = "session_unchecked"


class PasswordTooLongError(TenantError):
    """The password is too long."""

    code = "password_too_long"

    def __init__(self, limit: int) -> None:
        super().__init__(f"a password has at most {limit} characters")
        self.limit = limit


class HashQueueFullError(TenantError):
    """Too many logins are being checked; try again shortly."""

    code = "hash_queue_full"


class SchemaBehindError(TenantError):
    """This site is being updated; try again shortly."""

    code = "schema_behind"

    def __init__(self, slug: str, version: int, minimum: int) -> None:
        super().__init__(
            f"the tables of tenant {slug!r} are at version {version:04}, and this app needs {minimum:04}: "
            "run the command `migrate`"
        )
        self.slug = slug
        self.version = version
        self.minimum = minimum


class SharedSchemaBehindError(SchemaBehindError):
    """This site is being updated; try again shortly."""

    code = "shared_schema_behind"

    def __init__(self, slug: str, version: int, minimum: int) -> None:
        TenantError.__init__(
            self,
            f"the shared tables are at version {version:04}, and this app needs {minimum:04}: "
            "run the command `migrate`",
        )
        self.slug = slug
        self.version = version
        self.minimum = minimum


class SharedNameError(TenantError):
    """A name is in a tenant's schema and in a shared one."""

    code = "shared_name"


# The database


class DatabaseUnavailableError(TenantError):
    """The database cannot be reached; try again shortly."""

    code = "database_unavailable"

    def __init__(self, message: str, *, lost: bool = False) -> None:
        super().__init__(message)
        # Whether an open connection broke. Then the next connection may work.
        self.lost = lost


class DatabaseTimeoutError(TenantError, TimeoutError):
    """The database took too long; try again shortly."""

    code = "database_timeout"


class PoolExhaustedError(TenantError):
    """All database connections are in use; try again shortly."""

    code = "pool_exhausted"


class TenantOverShareError(TenantError):
    """Too many requests for this tenant wait for the database; try again shortly."""

    code = "tenant_over_share"


class RequestTimeoutError(TenantError, TimeoutError):
    """The request took too long and was cancelled; try again shortly."""

    code = "request_timeout"


class RolesNotReadyError(TenantError):
    """The roles of the tenants are not set up."""

    code = "roles_not_ready"


class LeakError(TenantError):
    """The database would let one tenant see another one's rows."""

    code = "leak"


class DatabaseRefusedError(TenantError):
    """The database refused a statement."""

    code = "database_refused"


class TransactionLostError(TenantError):
    """The transaction was not saved."""

    code = "transaction_lost"


class RegistryNotReadyError(TenantError):
    """The tenant registry is not ready."""

    code = "registry_not_ready"


class RegistryStaleError(TenantError):
    """The tenant registry cannot be read; try again shortly."""

    code = "registry_stale"

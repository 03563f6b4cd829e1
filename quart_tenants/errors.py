"""Name everything that can go wrong with a tenant. Knows neither HTTP nor SQL.

The first line of each docstring is a sentence that a user may read: it becomes the public
text of an answer whose details belong in the log only. `code` is stable API.
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

    def __init__(self, schema: str, migration: str, reason: str) -> None:
        super().__init__(f"migration {migration} failed in schema {schema!r} and was rolled back: {reason}")
        self.schema = schema
        self.migration = migration


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


class InvalidNameError(TenantError):
    """The name cannot be a tenant's display name."""

    code = "invalid_name"


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
    """A tenant of this name was dropped a moment ago; try again shortly."""

    code = "recently_dropped"

    def __init__(self, slug: str, wait: float) -> None:
        super().__init__(f"tenant {slug!r} was dropped a moment ago and may be remembered; try again in {wait:.0f} s")
        self.slug = slug
        self.wait = wait


class SchemaExistsError(TenantError):
    """The schema exists already."""

    code = "schema_exists"

    def __init__(self, schema: str) -> None:
        super().__init__(
            f"schema {schema!r} exists already; to make it a tenant as it is: quart-tenants adopt {schema}"
        )
        self.schema = schema


class UnknownSchemaError(TenantError):
    """The schema does not exist, or may not be used."""

    code = "unknown_schema"

    def __init__(self, schema: str, reason: str) -> None:
        super().__init__(f"schema {schema!r} cannot be adopted: {reason}")
        self.schema = schema


# Requests


class NoTenantError(TenantError):
    """No tenant was named where one is needed."""

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


class PasswordTooLongError(TenantError):
    """The password is too long."""

    code = "password_too_long"

    def __init__(self, limit: int) -> None:
        super().__init__(f"a password has at most {limit} characters")
        self.limit = limit


class HashQueueFullError(TenantError):
    """Too many logins are being checked; try again shortly."""

    code = "hash_queue_full"


# The database


class DatabaseUnavailableError(TenantError):
    """The database cannot be reached; try again shortly."""

    code = "database_unavailable"


class DatabaseTimeoutError(TenantError, TimeoutError):
    """The database took too long; try again shortly."""

    code = "database_timeout"


class PoolExhaustedError(TenantError):
    """All database connections are in use; try again shortly."""

    code = "pool_exhausted"


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

"""Name every `TENANTS_*` setting, and read them all. Pure: from a mapping, neither files nor the environment."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quart_tenants.errors import SettingError
from quart_tenants.setting_checks import (
    DnsServer,
    Network,
    between,
    check_bind,
    check_dns_servers,
    check_domain,
    check_folder,
    check_names,
    check_proxies,
    check_public_url,
    check_schemas,
    check_schemes,
    check_switch,
    check_url,
    one_of,
)
from quart_tenants.tenant import SchemaName

PREFIX = "TENANTS_"


def _setting(default: object, check: Callable[[Any], object], unit: str, purpose: str) -> Any:
    return field(default=default, metadata={"check": check, "unit": unit, "purpose": purpose})


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, checked. The setting `TENANTS_DOMAIN` is the attribute `domain`.

    Example:
        >>> from quart_tenants.admin import read_settings
        >>> read_settings({"TENANTS_POOL_MAX_SIZE": 4}).pool_max_size
        4
    """

    database_url: str | None = _setting(
        None,
        check_url,
        "URL",
        "The PostgreSQL database that holds the tenants. Everything that reads or writes a table needs it.",
    )
    direct_database_url: str | None = _setting(
        None,
        check_url,
        "URL",
        "The same database without a pooler between, for what needs a session of its own: `subscribe()`, backups, "
        "restores, rehearsals, and migrations outside a transaction.",
    )
    domain: str = _setting(
        "localhost", check_domain, "domain", "Tenants answer at `<tenant>.<domain>`, on any port and in any case."
    )
    public_url: str | None = _setting(
        None,
        check_public_url,
        "URL",
        "The address of the domain itself as visitors type it, such as `https://example.com`. `tenant_url()` needs it "
        "outside of requests, for the links in mails.",
    )
    reserved_slugs: frozenset[str] = _setting(
        frozenset({"admin", "api", "app", "mail", "static", "www"}),
        check_names,
        "names",
        "Subdomains that no new tenant may take.",
    )
    migrations_dir: Path | None = _setting(
        None,
        check_folder,
        "folder",
        "The files `NNNN_what_it_does.sql` that make a tenant's tables. An app of your own needs it.",
    )
    shared_schemas: tuple[SchemaName, ...] = _setting(
        (),
        check_schemas,
        "schemas",
        "Schemas that every tenant reads, in this order: they lie behind the tenant's own on the path of every block.",
    )
    shared_migrations_dir: Path | None = _setting(
        None,
        check_folder,
        "folder",
        "The files `NNNN_what_it_does.sql` that make the shared tables. They run once, in the first shared schema.",
    )
    minimum_version: int | None = _setting(
        None,
        between(0, 9999, int),
        "version",
        "A tenant whose tables are older is answered 503 `schema_behind`. Unset: the newest file when the app starts.",
    )
    migration_lock_timeout: float = _setting(
        0.2,
        between(0.01, 3600, float),
        "seconds",
        "How long a statement of a migration waits for a lock. Requests wait behind it: that tenant's, or everybody's "
        "for a shared table.",
    )
    migration_statement_timeout: float = _setting(
        300.0, between(0.01, 604800, float), "seconds", "How long one statement of a migration may take."
    )
    migration_attempts: int = _setting(
        8,
        between(1, 100, int),
        "attempts",
        "How often the migration of a tenant is tried if a lock, a deadlock or a lost connection stops it.",
    )
    ready_tenants: int = _setting(
        0,
        between(0, 1000, int),
        "tenants",
        "How many empty tenants are made in advance, so that a sign-up takes one at once instead of making its tables.",
    )
    trash_days: float = _setting(
        30.0, between(0, 36500, float), "days", "How long a dropped tenant is kept before `purge` deletes it."
    )
    redirect_days: float = _setting(
        30.0, between(0, 36500, float), "days", "How long the old address of a renamed tenant leads to the new one."
    )
    dns_servers: tuple[DnsServer, ...] = _setting(
        (),
        check_dns_servers,
        "addresses",
        "Servers that are asked whether a domain belongs to a tenant: `127.0.0.1`, `127.0.0.1:5353` or `[::1]:53`. "
        "None: those of the system.",
    )
    trusted_proxies: tuple[Network | str, ...] = _setting(
        (),
        check_proxies,
        "networks",
        "Proxies whose `X-Forwarded-*` headers are trusted; `unix` for one that connects by a unix socket. "
        "The headers of all other clients are ignored.",
    )
    trusted_proxy_hops: int = _setting(
        1,
        between(1, 16, int),
        "proxies",
        "How many trusted proxies a request passes, one after the other, before it reaches a worker.",
    )
    hsts_seconds: int = _setting(
        31536000,
        between(0, 2**31 - 1, int),
        "seconds",
        "How long a browser that used https must use https only (HSTS). 0 sends no such header.",
    )
    session_lifetime: float = _setting(
        43200.0, between(1, 31536000, float), "seconds", "A session ends this long after its login, also if it is used."
    )
    session_idle_lifetime: float = _setting(
        7200.0, between(1, 31536000, float), "seconds", "A session ends this long after its last use."
    )
    session_ask_after: float = _setting(
        1.8,
        between(0.06, 120, float),
        "seconds",
        "A worker that had no news for this long asks the database whether a session was ended, or answers 503. "
        "With more than 2, a session may outlive its end by more than two seconds.",
    )
    login_attempts: int = _setting(
        5,
        between(1, 1000, int),
        "logins",
        "How many wrong passwords one account may have before the next try must wait. Each wait is twice as long.",
    )
    login_attempts_per_address: int = _setting(
        30,
        between(1, 100000, int),
        "logins",
        "How many wrong passwords one address may send to one tenant before it must wait. IPv6: one /64 network.",
    )
    login_max_delay: float = _setting(
        60.0, between(1, 86400, float), "seconds", "The longest wait after a wrong password."
    )
    login_forget_after: float = _setting(
        900.0, between(1, 604800, float), "seconds", "The count starts again after this long without a wrong password."
    )
    role_per_tenant: bool = _setting(
        False,
        check_switch,
        "true or false",
        "Each tenant gets a PostgreSQL role that reaches only its own schema, and its blocks work as that role.",
    )
    probes: bool = _setting(
        True, check_switch, "true or false", "Whether `/healthz` and `/readyz` answer on every host."
    )
    request_timeout: float = _setting(
        30.0,
        between(0.1, 86400, float),
        "seconds",
        "How long a request may take until its answer begins. After that it is cancelled and answered 503.",
    )
    worker_timeout: float = _setting(
        30.0,
        between(0, 86400, float),
        "seconds",
        "A worker of `serve` whose event loop stands still for so long is killed and replaced. 0: never.",
    )
    pool_min_size: int = _setting(
        1, between(0, 1000, int), "connections", "Connections that each worker keeps open, also when they are idle."
    )
    pool_max_size: int = _setting(
        10,
        between(1, 1000, int),
        "connections",
        "How many connections each worker opens for tenants. It opens one more for the registry.",
    )
    tenant_pool_share: int | None = _setting(
        None,
        between(1, 1000, int),
        "connections",
        "How many of these connections one tenant may use at a time. Unset: half of `TENANTS_POOL_MAX_SIZE`.",
    )
    tenant_pool_queue: int = _setting(
        32,
        between(0, 10000, int),
        "blocks",
        "How many blocks of one tenant may wait for its share. The next one is answered 429.",
    )
    stuck_after: int = _setting(
        3,
        between(0, 1000, int),
        "blocks",
        "A tenant of which so many blocks time out one after the other is answered 503 at once, but for a try now and "
        "then, until the database answers. 0: never.",
    )
    acquire_timeout: float = _setting(
        5.0, between(0.01, 3600, float), "seconds", "How long a block waits for a connection before it answers 503."
    )
    connect_timeout: float = _setting(
        5.0, between(0.01, 3600, float), "seconds", "How long opening a connection may take."
    )
    command_timeout: float = _setting(
        30.0, between(0.01, 86400, float), "seconds", "How long one statement may take before it is cancelled."
    )
    statement_cache_size: int = _setting(
        1000,
        between(0, 10000, int),
        "statements",
        "Prepared statements kept by each connection, each for one tenant. Behind a pooler none are kept, "
        "and each connection remembers the types of as many.",
    )
    driver_mode: str = _setting(
        "auto",
        one_of("auto", "plain"),
        "auto or plain",
        "`plain` uses nothing of asyncpg's inside: a few messages more for each block, and as safe. "
        "`auto` tries out at start what asyncpg can do, and is plain behind a pooler.",
    )
    connection_max_memory: int = _setting(
        48,
        between(1, 1000000, int),
        "megabytes",
        "A connection is replaced if its server process uses more memory than this, because the process remembers the "
        "tables of every tenant that it has served. Needs a login that is a superuser or in `pg_read_all_stats`.",
    )
    connection_max_tenants: int = _setting(
        500,
        between(1, 1000000, int),
        "tenants",
        "With any other login, a connection is replaced after it has served this many tenants.",
    )
    registry_poll_interval: float = _setting(
        1.0, between(0.05, 60, float), "seconds", "How often each worker reads which tenants changed."
    )
    registry_max_age: float = _setting(
        10.0,
        between(0.1, 3600, float),
        "seconds",
        "A worker that had no news for this long answers 503, because it no longer trusts its memory.",
    )
    password_schemes: tuple[str, ...] = _setting(
        ("argon2", "pbkdf2_sha256"),
        check_schemes,
        "schemes",
        "Accepted password hashes; the first is for new passwords. Each one adds time to every login, so remove "
        "`pbkdf2_sha256` when no user has such a hash any more.",
    )
    password_hash_concurrency: int = _setting(
        2, between(1, 64, int), "logins", "How many passwords each worker checks at the same time."
    )
    password_hash_queue: int = _setting(
        32,
        between(0, 10000, int),
        "logins",
        "How many logins may wait for a password check. The next one is answered 503.",
    )
    sign_up: bool = _setting(
        False,
        check_switch,
        "true or false",
        "Whether strangers may make tenants, at `/sign-up` of the reference app's domain. Each attempt is counted for "
        "the visitor's IP address like a wrong password, so that more than a few in a row have to wait.",
    )
    metrics_bind: str | None = _setting(
        None,
        check_bind,
        "address",
        "Where `serve` answers `/metrics` for Prometheus: a port of this machine, `9464`, or `10.0.0.5:9464`, where "
        "whoever reaches it can read it. Needs the extra `metrics`, and to be in the environment. Unset: nowhere.",
    )
    metrics_tenants: int = _setting(
        20,
        between(0, 1000, int),
        "tenants",
        "How many of the busiest tenants each worker names in its figures. All others are one line.",
    )
    slow_block: float = _setting(
        1.0,
        between(0.001, 86400, float),
        "seconds",
        "A block that takes so long gets a line in the log, with its tenant, its longest statement without values, "
        "and where the time went.",
    )
    log_format: str = _setting(
        "console", one_of("console", "json"), "console or json", "How `serve` and the commands write their log."
    )
    log_level: str = _setting(
        "info",
        one_of("debug", "info", "warning", "error"),
        "debug, info, warning or error",
        "Lines that are less important are not written. Audit lines are always written.",
    )
    audit: bool = _setting(
        True,
        check_switch,
        "true or false",
        "Whether `serve` and the commands write audit lines: who did what. `TENANTS_LOG_LEVEL` does not change that.",
    )

    @property
    def required_database_url(self) -> str:
        """The URL of the database.

        Raises:
            SettingError: It is not set.
        """
        if self.database_url is None:
            raise SettingError(
                f"{PREFIX}DATABASE_URL",
                "is not set: put the database's URL into the environment as QUART_TENANTS_DATABASE_URL, "
                "such as postgresql://user:password@host:5432/database",
            )
        return self.database_url

    @property
    def shared_names(self) -> list[str]:
        """The names of the shared schemas, in the order of the path."""
        return [schema.name for schema in self.shared_schemas]


def get_key(setting: Field[Any]) -> str:
    """Return the key of a field of `Settings`: `TENANTS_DOMAIN` for `domain`."""
    return PREFIX + setting.name.upper()


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Return the settings in *config*, where other keys than `TENANTS_*` are ignored.

    A value of None means the default.

    Raises:
        SettingError: A value is wrong, or a `TENANTS_*` key is unknown.

    Example:
        >>> from quart_tenants.admin import read_settings
        >>> read_settings({"TENANTS_DOMAIN": "example.com"}).domain
        'example.com'
    """
    known = {get_key(setting): setting for setting in fields(Settings)}
    values = {}
    for key, value in config.items():
        if not key.startswith(PREFIX) or value is None:
            continue
        if key not in known:
            # The common prefix would make every unknown key look similar to some known one.
            nearest = difflib.get_close_matches(key[len(PREFIX) :], [name[len(PREFIX) :] for name in known], n=1)
            raise SettingError(key, "is no setting" + (f"; did you mean {PREFIX}{nearest[0]}?" if nearest else ""))
        try:
            values[known[key].name] = known[key].metadata["check"](value)
        except ValueError as error:
            raise SettingError(key, str(error)) from None
    settings = Settings(**values)
    if settings.public_url is not None and urlsplit(settings.public_url).hostname != settings.domain:
        raise SettingError(
            "TENANTS_PUBLIC_URL", f"is {settings.public_url}, whose host is not TENANTS_DOMAIN, {settings.domain}"
        )
    if settings.shared_migrations_dir is not None and not settings.shared_schemas:
        raise SettingError(
            "TENANTS_SHARED_MIGRATIONS_DIR", "needs TENANTS_SHARED_SCHEMAS: name the schema in which the files run"
        )
    if settings.pool_min_size > settings.pool_max_size:
        raise SettingError(
            "TENANTS_POOL_MIN_SIZE",
            f"is {settings.pool_min_size}, more than TENANTS_POOL_MAX_SIZE {settings.pool_max_size}",
        )
    if settings.registry_max_age <= settings.registry_poll_interval:
        raise SettingError(
            "TENANTS_REGISTRY_MAX_AGE",
            f"is {settings.registry_max_age:.12g}: give more than TENANTS_REGISTRY_POLL_INTERVAL, "
            f"which is {settings.registry_poll_interval:.12g}, or each worker would answer 503 between two polls",
        )
    if settings.session_ask_after <= settings.registry_poll_interval:
        raise SettingError(
            "TENANTS_SESSION_ASK_AFTER",
            f"is {settings.session_ask_after:g}: give more than TENANTS_REGISTRY_POLL_INTERVAL, "
            f"which is {settings.registry_poll_interval:g}, or sessions would be 503 between two polls",
        )
    if settings.session_idle_lifetime > settings.session_lifetime:
        raise SettingError(
            "TENANTS_SESSION_IDLE_LIFETIME",
            f"is {settings.session_idle_lifetime:.12g}, "
            f"more than TENANTS_SESSION_LIFETIME {settings.session_lifetime:.12g}",
        )
    if settings.tenant_pool_share is not None and settings.tenant_pool_share > settings.pool_max_size:
        raise SettingError(
            "TENANTS_TENANT_POOL_SHARE",
            f"is {settings.tenant_pool_share}, more than TENANTS_POOL_MAX_SIZE {settings.pool_max_size}",
        )
    return settings

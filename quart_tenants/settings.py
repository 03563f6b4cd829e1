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

_AT_MOST = (
    ("pool_min_size", "pool_max_size"),
    ("tenant_pool_share", "pool_max_size"),
    ("session_idle_lifetime", "session_lifetime"),
)


def _setting(default: object, check: Callable[[Any], object]) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, checked. The setting `TENANTS_DOMAIN` is the attribute `domain`.

    What each of them does is in `docs/settings.md`.

    Example:
        >>> from quart_tenants.admin import read_settings
        >>> read_settings({"TENANTS_POOL_MAX_SIZE": 4}).pool_max_size
        4
    """

    database_url: str | None = _setting(None, check_url)
    direct_database_url: str | None = _setting(None, check_url)
    domain: str = _setting("localhost", check_domain)
    public_url: str | None = _setting(None, check_public_url)
    reserved_slugs: frozenset[str] = _setting(frozenset({"admin", "api", "app", "mail", "static", "www"}), check_names)
    migrations_dir: Path | None = _setting(None, check_folder)
    shared_schemas: tuple[SchemaName, ...] = _setting((), check_schemas)
    shared_migrations_dir: Path | None = _setting(None, check_folder)
    minimum_version: int | None = _setting(None, between(0, 9999, int))  # None: the newest file
    migration_lock_timeout: float = _setting(0.2, between(0.01, 3600, float))  # seconds
    migration_statement_timeout: float = _setting(300.0, between(0.01, 604800, float))  # seconds
    migration_attempts: int = _setting(8, between(1, 100, int))  # attempts
    ready_tenants: int = _setting(0, between(0, 1000, int))  # tenants
    trash_days: float = _setting(30.0, between(0, 36500, float))  # days
    redirect_days: float = _setting(30.0, between(0, 36500, float))  # days
    dns_servers: tuple[DnsServer, ...] = _setting((), check_dns_servers)
    trusted_proxies: tuple[Network | str, ...] = _setting((), check_proxies)
    trusted_proxy_hops: int = _setting(1, between(1, 16, int))  # proxies
    hsts_seconds: int = _setting(31536000, between(0, 2**31 - 1, int))  # 0: no such header
    session_lifetime: float = _setting(43200.0, between(1, 31536000, float))  # seconds
    session_idle_lifetime: float = _setting(7200.0, between(1, 31536000, float))  # seconds
    session_ask_after: float = _setting(1.8, between(0.06, 120, float))  # seconds
    login_attempts: int = _setting(5, between(1, 1000, int))  # logins
    login_attempts_per_address: int = _setting(30, between(1, 100000, int))  # logins
    login_max_delay: float = _setting(60.0, between(1, 86400, float))  # seconds
    login_forget_after: float = _setting(900.0, between(1, 604800, float))  # seconds
    role_per_tenant: bool = _setting(False, check_switch)
    probes: bool = _setting(True, check_switch)
    request_timeout: float = _setting(30.0, between(0.1, 86400, float))  # seconds
    worker_timeout: float = _setting(30.0, between(0, 86400, float))  # seconds; 0: never
    pool_min_size: int = _setting(1, between(0, 1000, int))  # connections
    pool_max_size: int = _setting(10, between(1, 1000, int))  # connections
    tenant_pool_share: int | None = _setting(None, between(1, 1000, int))  # connections; None: half of pool_max_size
    tenant_pool_queue: int = _setting(32, between(0, 10000, int))  # blocks
    stuck_after: int = _setting(3, between(0, 1000, int))  # blocks; 0: never
    acquire_timeout: float = _setting(5.0, between(0.01, 3600, float))  # seconds
    connect_timeout: float = _setting(5.0, between(0.01, 3600, float))  # seconds
    command_timeout: float = _setting(30.0, between(0.01, 86400, float))  # seconds
    statement_cache_size: int = _setting(1000, between(0, 10000, int))  # statements
    driver_mode: str = _setting("auto", one_of("auto", "plain"))
    connection_max_memory: int = _setting(48, between(1, 1000000, int))  # megabytes
    connection_max_tenants: int = _setting(500, between(1, 1000000, int))  # tenants
    registry_poll_interval: float = _setting(1.0, between(0.05, 60, float))  # seconds
    registry_max_age: float = _setting(10.0, between(0.1, 3600, float))  # seconds
    password_schemes: tuple[str, ...] = _setting(("argon2", "pbkdf2_sha256"), check_schemes)
    password_hash_concurrency: int = _setting(2, between(1, 64, int))  # logins
    password_hash_queue: int = _setting(32, between(0, 10000, int))  # logins
    sign_up: bool = _setting(False, check_switch)
    metrics_bind: str | None = _setting(None, check_bind)
    metrics_tenants: int = _setting(20, between(0, 1000, int))  # tenants
    slow_block: float = _setting(1.0, between(0.001, 86400, float))  # seconds
    log_format: str = _setting("console", one_of("console", "json"))
    log_level: str = _setting("info", one_of("debug", "info", "warning", "error"))
    audit: bool = _setting(True, check_switch)

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
    return _name(setting.name)


def _name(attribute: str) -> str:
    return PREFIX + attribute.upper()


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
    for smaller, larger in _AT_MOST:
        value, most = getattr(settings, smaller), getattr(settings, larger)
        if value is not None and value > most:
            raise SettingError(_name(smaller), f"is {value:.12g}, more than {_name(larger)} {most:.12g}")
    interval = settings.registry_poll_interval
    for longer, what in (("registry_max_age", "each worker would answer"), ("session_ask_after", "sessions would be")):
        if (value := getattr(settings, longer)) <= interval:
            raise SettingError(
                _name(longer),
                f"is {value:.12g}: give more than TENANTS_REGISTRY_POLL_INTERVAL, which is {interval:.12g}, "
                f"or {what} 503 between two polls",
            )
    return settings

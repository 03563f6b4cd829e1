"""Settings: each is checked, and what is wrong is said with its name and its remedy."""

from collections.abc import Mapping
from dataclasses import fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quart_tenants.errors import SettingError
from quart_tenants.settings import PREFIX, Settings, get_key, read_settings

NUMBERS = {
    "TENANTS_POOL_MIN_SIZE": (0, 1000),
    "TENANTS_POOL_MAX_SIZE": (1, 1000),
    "TENANTS_ACQUIRE_TIMEOUT": (0.01, 3600),
    "TENANTS_CONNECT_TIMEOUT": (0.01, 3600),
    "TENANTS_COMMAND_TIMEOUT": (0.01, 86400),
    "TENANTS_STATEMENT_CACHE_SIZE": (0, 10000),
    "TENANTS_CONNECTION_MAX_MEMORY": (1, 1000000),
    "TENANTS_CONNECTION_MAX_TENANTS": (1, 1000000),
    "TENANTS_REGISTRY_POLL_INTERVAL": (0.05, 60),
    "TENANTS_REGISTRY_MAX_AGE": (0.1, 3600),
    "TENANTS_PASSWORD_HASH_CONCURRENCY": (1, 64),
    "TENANTS_PASSWORD_HASH_QUEUE": (0, 10000),
    "TENANTS_MINIMUM_VERSION": (0, 9999),
    "TENANTS_MIGRATION_LOCK_TIMEOUT": (0.01, 3600),
    "TENANTS_MIGRATION_STATEMENT_TIMEOUT": (0.01, 604800),
    "TENANTS_MIGRATION_ATTEMPTS": (1, 100),
    "TENANTS_TRASH_DAYS": (0, 36500),
    "TENANTS_READY_TENANTS": (0, 1000),
    "TENANTS_REDIRECT_DAYS": (0, 36500),
    "TENANTS_TRUSTED_PROXY_HOPS": (1, 16),
    "TENANTS_HSTS_SECONDS": (0, 2**31 - 1),
    "TENANTS_SESSION_LIFETIME": (1, 31536000),
    "TENANTS_SESSION_IDLE_LIFETIME": (1, 31536000),
    "TENANTS_SESSION_ASK_AFTER": (0.06, 120),
    "TENANTS_LOGIN_ATTEMPTS": (1, 1000),
    "TENANTS_LOGIN_ATTEMPTS_PER_ADDRESS": (1, 100000),
    "TENANTS_LOGIN_MAX_DELAY": (1, 86400),
    "TENANTS_LOGIN_FORGET_AFTER": (1, 604800),
    "TENANTS_REQUEST_TIMEOUT": (0.1, 86400),
    "TENANTS_WORKER_TIMEOUT": (0, 86400),
    "TENANTS_TENANT_POOL_SHARE": (1, 1000),
    "TENANTS_TENANT_POOL_QUEUE": (0, 10000),
    "TENANTS_STUCK_AFTER": (0, 1000),
    "TENANTS_METRICS_TENANTS": (0, 1000),
    "TENANTS_SLOW_BLOCK": (0.001, 86400),
}
KINDS = {get_key(setting): {setting.type, *get_args(setting.type)} for setting in fields(Settings)}
WHOLE_NUMBERS = sorted(key for key, kinds in KINDS.items() if int in kinds)
# What lets each number reach its limits: two settings are compared with each other.
COMPANIONS: dict[str, dict[str, Any]] = {
    "TENANTS_POOL_MIN_SIZE": {"TENANTS_POOL_MAX_SIZE": 1000},
    "TENANTS_POOL_MAX_SIZE": {"TENANTS_POOL_MIN_SIZE": 0},
    "TENANTS_TENANT_POOL_SHARE": {"TENANTS_POOL_MAX_SIZE": 1000},
    "TENANTS_SESSION_LIFETIME": {"TENANTS_SESSION_IDLE_LIFETIME": 1},
    "TENANTS_SESSION_IDLE_LIFETIME": {"TENANTS_SESSION_LIFETIME": 31536000},
    "TENANTS_REGISTRY_POLL_INTERVAL": {"TENANTS_REGISTRY_MAX_AGE": 3600, "TENANTS_SESSION_ASK_AFTER": 120},
    "TENANTS_SESSION_ASK_AFTER": {"TENANTS_REGISTRY_POLL_INTERVAL": 0.05},
    "TENANTS_REGISTRY_MAX_AGE": {"TENANTS_REGISTRY_POLL_INTERVAL": 0.05},
}


def read_setting(key: str, value: object) -> object:
    """Return what `read_settings` makes of one *value*."""
    settings = read_settings({**COMPANIONS.get(key, {}), key: value})
    return getattr(settings, key.removeprefix(PREFIX).lower())


def get_error(config: Mapping[str, object]) -> SettingError:
    """Return the error that *config* raises."""
    with pytest.raises(SettingError) as caught:
        read_settings(config)
    return caught.value


def test_no_settings_are_the_defaults() -> None:
    """Every setting has a default."""
    assert read_settings({}) == Settings()


@pytest.mark.parametrize("setting", fields(Settings), ids=get_key)
def test_default_passes_its_own_check(setting: Any) -> None:
    """A default could be written into the configuration as it is; None stands for unset."""
    if setting.default is None:
        assert read_setting(get_key(setting), None) is None
    else:
        assert read_setting(get_key(setting), setting.default) == setting.default


def test_other_keys_are_ignored() -> None:
    """Only `TENANTS_*` keys are ours."""
    assert read_settings({"SECRET_KEY": "x", "DOMAIN": "example.com", "tenants_domain": "example.com"}) == Settings()


def test_none_means_the_default() -> None:
    """A value of None is no value."""
    assert read_settings({"TENANTS_DOMAIN": None}) == Settings()


def test_unknown_setting_suggests_the_nearest() -> None:
    """A misspelt name is an error that names the one that was meant."""
    error = get_error({"TENANTS_ACQUIRE_TIMOUT": 1})

    assert str(error) == "TENANTS_ACQUIRE_TIMOUT is no setting; did you mean TENANTS_ACQUIRE_TIMEOUT?"
    assert error.setting == "TENANTS_ACQUIRE_TIMOUT"


def test_unknown_setting_is_an_error_without_a_suggestion() -> None:
    """Nothing is suggested where nothing is near."""
    assert str(get_error({"TENANTS_" + "Q" * 40: 1})).endswith("is no setting")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:password@db.example.com:5432/tenants",
        "postgres:///tenants",
        "postgresql://postgres@/tenants?host=%2Fvar%2Frun&port=5433",
        "postgresql://a:1,b:2/tenants?target_session_attrs=primary",
        "postgresql://user:p%40ss%2Fword@[::1]:5432/tenants",
    ],
)
def test_database_url_is_kept(url: str) -> None:
    """A PostgreSQL URL is used as it is."""
    assert read_setting("TENANTS_DATABASE_URL", url) == url


@pytest.mark.parametrize(
    "value",
    [
        "mysql://user:sesame@host/tenants",
        "user:sesame@host/tenants",
        "host=/tmp password=sesame",
        "postgresql://user:sesame@[host/tenants",  # what urlsplit calls an invalid IPv6 URL
        "postgresql://user:sesame\u2100@host/tenants",  # what urlsplit repeats in its error
        "postgresql://user:ses/ame@host/tenants",
        "postgresql://user:ses?ame@host/tenants",
        "postgresql://user:ses#ame@host/tenants",
        b"postgresql://user:sesame@host/tenants",
        12345,
        True,
        "",
    ],
)
def test_wrong_database_url_is_never_repeated(value: object) -> None:
    """The error about a URL names the setting and the remedy, and no part of the password."""
    error = get_error({"TENANTS_DATABASE_URL": value})

    assert "TENANTS_DATABASE_URL" in str(error)
    assert "such as postgresql://user:password@host:5432/database" in str(error) or "write / as %2F" in str(error)
    assert "ses" not in str(error)
    assert "ame@" not in str(error)
    assert error.__suppress_context__


def test_required_database_url_names_the_variable() -> None:
    """Who needs the database and has no URL is told which variable to set."""
    with pytest.raises(SettingError, match="QUART_TENANTS_DATABASE_URL"):
        _ = Settings().required_database_url


@pytest.mark.parametrize(
    ("value", "domain"),
    [
        ("localhost", "localhost"),
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("a-b.example", "a-b.example"),
        ("7.example", "7.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_domain_is_lower_case_without_a_dot_at_its_end(value: str, domain: str) -> None:
    """However a domain is written, it is kept in one form."""
    assert read_setting("TENANTS_DOMAIN", value) == domain


@pytest.mark.parametrize(
    "value",
    [
        "",
        ".",
        "example.com:5000",
        "https://example.com",
        "example.com/",
        "*.example.com",
        "example..com",
        "example.com..",
        ".example.com",
        "-a.com",
        "a_b.com",
        "example.com\n",
        "bücher.example",
        "\u212aelvin.example",  # the Kelvin sign
        "127.0.0.1",
        "::1",
        "a" * 64,
        ".".join(["a" * 49] * 6),
        5,
        True,
    ],
)
def test_wrong_domain_is_told_with_an_example(value: object) -> None:
    """What is no domain is repeated, with how to write one."""
    error = get_error({"TENANTS_DOMAIN": value})

    assert str(error).startswith(f"TENANTS_DOMAIN is {value!r}")
    assert "give it like example.com" in str(error)


@pytest.mark.parametrize(
    ("value", "servers"),
    [
        ("", []),
        ("127.0.0.1", [("127.0.0.1", 53)]),
        ("9.9.9.9:5353, ::1", [("9.9.9.9", 5353), ("::1", 53)]),
        (["[::1]", "[::1]:5353"], [("::1", 53), ("::1", 5353)]),
    ],
)
def test_dns_servers_are_addresses_in_their_order(value: object, servers: list[tuple[str, int]]) -> None:
    """The port is 53 where none is given; an address with colons has brackets before a port."""
    assert read_setting("TENANTS_DNS_SERVERS", value) == tuple(servers)


@pytest.mark.parametrize(
    "value", ["dns.example.com", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x", "[::1", "[]:53", [5], 5]
)
def test_wrong_dns_server_is_told_with_an_example(value: object) -> None:
    """A name is no address: it would have to be asked for itself."""
    assert "such as 127.0.0.1, 127.0.0.1:5353 or [::1]:53" in str(get_error({"TENANTS_DNS_SERVERS": value}))


@pytest.mark.parametrize("value", ["admin,www", " admin , www ,", ["admin", "www"], ("admin", "www"), {"admin", "www"}])
def test_reserved_slugs_are_a_set(value: object) -> None:
    """Names come from the environment with commas, or as any collection."""
    assert read_setting("TENANTS_RESERVED_SLUGS", value) == {"admin", "www"}


def test_no_reserved_slugs_is_a_choice() -> None:
    """An empty text reserves nothing."""
    assert read_setting("TENANTS_RESERVED_SLUGS", "") == frozenset()


@pytest.mark.parametrize("value", [5, True, [1, 2], b"admin"])
def test_wrong_reserved_slugs_ask_for_names(value: object) -> None:
    """What holds no names is told how to write them."""
    assert "TENANTS_RESERVED_SLUGS is" in str(get_error({"TENANTS_RESERVED_SLUGS": value}))
    assert "with commas between them" in str(get_error({"TENANTS_RESERVED_SLUGS": value}))


@pytest.mark.parametrize("as_type", [str, Path])
def test_migrations_dir_is_a_folder(tmp_path: Path, as_type: type[str] | type[Path]) -> None:
    """A folder that exists is accepted, as a text or as a Path."""
    assert read_setting("TENANTS_MIGRATIONS_DIR", as_type(tmp_path)) == tmp_path


@pytest.mark.parametrize("value", ["", "no/such/folder", __file__, "a\0b", "a" * 5000, 5, True])
def test_wrong_migrations_dir_is_told(value: object) -> None:
    """What is no folder is told as that, whatever the system says about it."""
    error = get_error({"TENANTS_MIGRATIONS_DIR": value})

    assert "TENANTS_MIGRATIONS_DIR is" in str(error)
    assert "which is no folder" in str(error)


def test_trusted_proxies_are_networks() -> None:
    """Addresses and networks of both families come from the environment with commas."""
    networks = read_setting("TENANTS_TRUSTED_PROXIES", "10.0.0.0/8, 127.0.0.1,::1")

    assert networks == (ip_network("10.0.0.0/8"), ip_network("127.0.0.1/32"), ip_network("::1/128"))


@pytest.mark.parametrize("value", ["*", "proxy.example.com", "10.0.0.1/8", "10.0.0.0/33", 5, True, [None]])
def test_wrong_trusted_proxies_are_told_with_an_example(value: object) -> None:
    """What is no network is an error with an example: nobody is trusted by mistake."""
    error = get_error({"TENANTS_TRUSTED_PROXIES": value})

    assert "TENANTS_TRUSTED_PROXIES is" in str(error)
    assert "10.0.0.0/8" in str(error)


@pytest.mark.parametrize(
    ("value", "schemes"),
    [
        ("argon2", ("argon2",)),
        ("pbkdf2_sha256, argon2", ("pbkdf2_sha256", "argon2")),
        (["argon2", "pbkdf2_sha256"], ("argon2", "pbkdf2_sha256")),
        ("argon2,argon2", ("argon2",)),
    ],
)
def test_password_schemes_keep_their_order(value: object, schemes: tuple[str, ...]) -> None:
    """The scheme for new passwords stays first; a double counts once."""
    assert read_setting("TENANTS_PASSWORD_SCHEMES", value) == schemes


@pytest.mark.parametrize("value", ["", "md5", "argon2,plaintext", [], 5, True, [["argon2"]]])
def test_wrong_password_schemes_name_the_known(value: object) -> None:
    """An unknown or missing scheme is told with those that there are."""
    error = get_error({"TENANTS_PASSWORD_SCHEMES": value})

    assert "TENANTS_PASSWORD_SCHEMES is" in str(error)
    assert "argon2 or pbkdf2_sha256" in str(error)


def test_every_number_is_tested() -> None:
    """No setting with a number escapes the tests below."""
    assert {key for key, kinds in KINDS.items() if kinds & {int, float}} == set(NUMBERS)


@pytest.mark.parametrize(("key", "limits"), NUMBERS.items())
def test_number_reaches_its_limits(key: str, limits: tuple[float, float]) -> None:
    """Both limits are allowed."""
    for limit in limits:
        assert read_setting(key, limit) == limit


@pytest.mark.parametrize(("key", "limits"), NUMBERS.items())
def test_number_beyond_its_limits_is_told_with_them(key: str, limits: tuple[float, float]) -> None:
    """What lies outside the limits is an error that names them."""
    low, high = limits
    for value in (low - 1, high + 1, float("nan"), float("inf")):
        error = get_error({**COMPANIONS.get(key, {}), key: value})

        assert str(error).startswith(f"{key} is {value!r}: give a ")
        assert f"number from {low} to {high}" in str(error)


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [True, False, "5", "", [5], b"5"])
def test_number_is_nothing_else(key: str, value: object) -> None:
    """A boolean or a text is no number, even one that Python takes for 1."""
    assert str(get_error({key: value})).startswith(f"{key} is {value!r}: give a ")


@pytest.mark.parametrize("key", WHOLE_NUMBERS)
def test_whole_number_has_no_fraction(key: str) -> None:
    """Half a connection is an error that asks for a whole number."""
    assert "give a whole number" in str(get_error({key: 1.5}))


@pytest.mark.parametrize("key", ["TENANTS_ROLE_PER_TENANT", "TENANTS_AUDIT"])
@pytest.mark.parametrize(("value", "switch"), [("True", True), ("FALSE", False), (True, True), (False, False)])
def test_switch_is_written_in_any_case(key: str, value: object, switch: bool) -> None:
    """The environment's `True` is no JSON, and is meant as it reads."""
    assert read_setting(key, value) is switch


@pytest.mark.parametrize("value", ["yes", "", 1, 0, [True]])
def test_switch_is_true_or_false(value: object) -> None:
    """Nothing else switches anything on or off."""
    assert str(get_error({"TENANTS_ROLE_PER_TENANT": value})).endswith(f"is {value!r}: give true or false")


def test_log_level_is_written_in_any_case() -> None:
    """`INFO` is `info`; an unknown level is told with those that there are."""
    assert read_setting("TENANTS_LOG_LEVEL", "WARNING") == "warning"
    assert "give debug or info or warning or error" in str(get_error({"TENANTS_LOG_LEVEL": "loud"}))


def test_seconds_may_be_whole() -> None:
    """The environment's 5 is 5.0 seconds."""
    assert isinstance(read_setting("TENANTS_ACQUIRE_TIMEOUT", 5), float)


def test_pool_minimum_is_not_above_its_maximum() -> None:
    """Two sizes that contradict each other are told together."""
    error = get_error({"TENANTS_POOL_MIN_SIZE": 6, "TENANTS_POOL_MAX_SIZE": 5})

    assert str(error) == "TENANTS_POOL_MIN_SIZE is 6, more than TENANTS_POOL_MAX_SIZE 5"


def test_registry_outlives_the_pause_between_two_polls() -> None:
    """An age that every poll would exceed is an error: the worker would answer 503 most of the time."""
    error = get_error({"TENANTS_REGISTRY_POLL_INTERVAL": 30})

    assert str(error).startswith("TENANTS_REGISTRY_MAX_AGE is 10: give more than TENANTS_REGISTRY_POLL_INTERVAL")


@given(
    st.sampled_from([get_key(setting) for setting in fields(Settings)]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.text()),
)
@example("TENANTS_DATABASE_URL", "postgresql://[")
def test_any_value_is_accepted_or_a_setting_error(key: str, value: object) -> None:
    """Whatever a configuration holds, the only error is one that names the setting."""
    message = key
    try:
        read_settings({key: value})
    except SettingError as error:
        message = str(error)

    assert key in message


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (9464, "127.0.0.1:9464"),
        ("9464", "127.0.0.1:9464"),
        ("0", "127.0.0.1:0"),
        ("10.0.0.5:9464", "10.0.0.5:9464"),
        ("[::1]:9464", "[::1]:9464"),
    ],
)
def test_metrics_are_at_this_machine_unless_an_address_is_given(given: object, read: str) -> None:
    """A port alone is one of the loopback address."""
    assert read_setting("TENANTS_METRICS_BIND", given) == read


@pytest.mark.parametrize("given", ["", "65536", "localhost:9464", "10.0.0.5", "::1:9464", "9464\n", True, -1, "*:9464"])
def test_metrics_are_at_no_unclear_address(given: object) -> None:
    """What is neither a port nor an address with a port is refused, and names too."""
    error = get_error({"TENANTS_METRICS_BIND": given})

    assert "TENANTS_METRICS_BIND" in str(error)
    assert "9464" in str(error)

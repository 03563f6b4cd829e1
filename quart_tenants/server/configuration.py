"""Read Hypercorn's configuration, and refuse every line in it that would have no effect."""

import difflib
import importlib.util
import math
import tomllib
from pathlib import Path

from hypercorn.config import Config

from quart_tenants.errors import SettingError
from quart_tenants.resources import get_resource_path

_LOOPS = ("uvloop", "asyncio")
_TEXTS_OR_ONE = ("bind", "insecure_bind")
# What `serve` cannot do, with the reason.
_REFUSED = {
    "quic_bind": "is not served: the limits for slow clients do not cover QUIC; let the proxy in front speak it",
    "use_reloader": "is for development: use `quart run --reload`, or send SIGHUP to `serve` for new code",
}
# An example of a value for each key that has no default. Keys that are in no list, such as verify_mode, are checked by
# Hypercorn alone.
_EXAMPLES: dict[str, object] = {
    "max_requests": 0,
    "umask": 0,
    "user": 0,
    "group": 0,
    "read_timeout": 0.0,
    "websocket_ping_interval": 0.0,
    **dict.fromkeys(("accesslog", "errorlog", "logconfig", "pid_path", "statsd_host", "application_path"), ""),
    **dict.fromkeys(("ca_certs", "certfile", "keyfile", "keyfile_password"), ""),
}


def load_server_config(path: Path | None = None) -> Config:
    """Return Hypercorn's configuration from *path*, or from the hypercorn.toml that comes with this package.

    Raises:
        SettingError: The file cannot be read, has an unknown key, or has a value that Hypercorn or `serve` cannot use.
    """
    path = path or get_resource_path("hypercorn.toml")
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(str(path), f"cannot be read as a Hypercorn configuration: {error}") from error
    known = _find_keys()
    for key, value in given.items():
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise SettingError(key, f"in {path} is no setting of Hypercorn's{hint}")
        if value and key in _REFUSED:
            raise SettingError(key, f"in {path} {_REFUSED[key]}")
        expected = _find_mistake(key, value)
        if expected:
            raise SettingError(key, f"is {value!r} in {path}: give {expected}")
    config = Config.from_mapping(given)
    if config.worker_class == "uvloop" and importlib.util.find_spec("uvloop") is None:
        config.worker_class = "asyncio"
    return config


def _find_keys() -> list[str]:
    """Return the keys that a file can set: attributes of Config that are no methods, no classes and can be written."""
    found = set(_EXAMPLES)
    for name in dir(Config):
        value = getattr(Config, name)
        if not name.startswith("_") and not callable(value) and not (isinstance(value, property) and not value.fset):
            found.add(name)
    return sorted(found)


def _find_mistake(key: str, value: object) -> str | None:
    """Return what *key* needs instead of *value*, or None if *value* is right."""
    if key == "worker_class":
        return None if value in _LOOPS else " or ".join(_LOOPS)
    if key in _TEXTS_OR_ONE:
        texts = [value] if isinstance(value, str) else value
        return None if texts != [] and _are_texts(texts) else "host:port, or a list of them"
    # The attribute cert_reqs can be written, but not read.
    usual = _EXAMPLES[key] if key in _EXAMPLES else None if key == "cert_reqs" else getattr(Config, key)
    match usual:
        case bool():
            return None if isinstance(value, bool) else "true or false"
        case int():
            return None if isinstance(value, int) and _is_number(value) else "a whole number"
        case float():
            return None if _is_number(value) else "a number"
        case str():
            return None if isinstance(value, str) else "a text"
        case list():
            return None if _are_texts(value) else "a list of texts"
    return None


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_number(value: object) -> bool:
    # For Python, True is a number as well.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0

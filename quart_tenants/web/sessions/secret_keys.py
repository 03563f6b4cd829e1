"""Check the secret key of an app, by which it signs its sessions."""

from quart import Quart

from quart_tenants.errors import SettingError

_MIN_SECRET_LENGTH = 16


def check_secret_key(app: Quart) -> None:
    """Make sure that *app* can sign its sessions.

    Raises:
        SettingError: The secret key is missing or too short.
    """
    key: object = app.secret_key
    if not key:
        raise explain_missing_key()
    if not _is_long_enough(key):
        raise SettingError(
            "SECRET_KEY", f"must be a text of at least {_MIN_SECRET_LENGTH} characters, and not a plain number"
        )
    fallbacks: object = app.config["SECRET_KEY_FALLBACKS"]
    if fallbacks is not None and not (isinstance(fallbacks, list | tuple) and all(map(_is_long_enough, fallbacks))):
        raise SettingError(
            "SECRET_KEY_FALLBACKS",
            f"must be a list of older keys, each a text of at least {_MIN_SECRET_LENGTH} characters; in the "
            'environment as JSON: ["…"]',
        )


def _is_long_enough(key: object) -> bool:
    return isinstance(key, str | bytes) and len(key) >= _MIN_SECRET_LENGTH


def explain_missing_key() -> SettingError:
    """Return the error of an app without a secret key."""
    return SettingError(
        "SECRET_KEY",
        "is not set: put a long random text into the environment as QUART_SECRET_KEY, such as the output of "
        "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'",
    )

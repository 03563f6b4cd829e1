"""The reference app: login, logout, data and static files for every tenant."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from quart import Quart

from quart_tenants.app.auth import auth
from quart_tenants.app.data import data
from quart_tenants.app.passwords import PasswordHasher
from quart_tenants.app.site import site
from quart_tenants.app.user_commands import user_commands
from quart_tenants.web.extension import QuartTenants
from quart_tenants.web.lingering import LingeringClose
from quart_tenants.web.problems import answer_all_errors
from quart_tenants.web.sessions import check_secret_key

# A login form is far smaller; 413 beyond it.
_MAX_BODY_BYTES = 64 * 1024
_SESSION_LIFETIME = timedelta(hours=12)


def create_app(config: Mapping[str, Any] | None = None) -> Quart:
    """Return the app. `QUART_*` in the environment go before *config*.

    Raises:
        SettingError: A setting is wrong. Missing ones are reported when the app starts to serve.
    """
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=_MAX_BODY_BYTES, PERMANENT_SESSION_LIFETIME=_SESSION_LIFETIME)
    app.config.update(config or {})
    app.config.from_prefixed_env()

    tenants = QuartTenants(app)
    tenants.commands.add_command(user_commands())
    answer_all_errors(app)
    hasher = PasswordHasher(tenants.settings)
    app.extensions["password_hasher"] = hasher
    for blueprint in (auth, data, site):
        app.register_blueprint(blueprint)

    @app.before_serving
    async def prepare() -> None:
        check_secret_key(app)
        await hasher.warm()

    app.after_serving(hasher.close)
    app.asgi_app = LingeringClose(app.asgi_app)  # type: ignore[method-assign]
    return app

"""The reference app: login, logout, data, static files and pages for every tenant."""

import logging
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from quart import Quart

from quart_tenants.app.auth import auth
from quart_tenants.app.data import data
from quart_tenants.app.member_pages import member_pages
from quart_tenants.app.page_style import add_page_style
from quart_tenants.app.passwords import PasswordHasher
from quart_tenants.app.sign_up import add_sign_up
from quart_tenants.app.site import site
from quart_tenants.app.user_commands import user_commands
from quart_tenants.resources import get_resource_path
from quart_tenants.web.answers.problems import answer_all_errors
from quart_tenants.web.answers.row_json import RowJSONProvider
from quart_tenants.web.extension import QuartTenants
from quart_tenants.web.guards.lingering import LingeringClose
from quart_tenants.web.logs.log_setup import configure_logging
from quart_tenants.web.sessions.secret_keys import check_secret_key

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

# A login form is far smaller. A larger body is answered 413.
_MAX_BODY_BYTES = 64 * 1024
_BODY_TIMEOUT = 6
"""Seconds. A body that takes longer is answered 408. `LingeringClose` cuts its client off two seconds later."""


def create_app(config: Mapping[str, Any] | None = None, *, tracer_provider: "TracerProvider | None" = None) -> Quart:
    """Return the app. `QUART_*` variables of the environment take precedence over *config*.

    Args:
        config: Values of the app's configuration.
        tracer_provider: OpenTelemetry's, if spans are wanted.

    Raises:
        SettingError: A setting is wrong. A missing setting is reported when the app starts to serve.
    """
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=_MAX_BODY_BYTES, BODY_TIMEOUT=_BODY_TIMEOUT)
    app.config["TENANTS_MIGRATIONS_DIR"] = get_resource_path("sql/tenant")
    app.config.update(config or {})
    app.config.from_prefixed_env()

    app.json = RowJSONProvider(app)
    tenants = QuartTenants(app, tracer_provider=tracer_provider)
    tenants.answer_headers.add(add_page_style(app))
    tenants.commands.add_command(user_commands())
    answer_all_errors(app)
    hasher = PasswordHasher(tenants.settings)
    app.extensions["password_hasher"] = hasher
    tenants.add_figures(hasher.count)
    for blueprint in (auth, data, member_pages, site):
        app.register_blueprint(blueprint)
    add_sign_up(app, tenants)
    # The extra `openapi` may be left out.
    if find_spec("quart_schema") is not None:
        import_module("quart_tenants.app.description").add_description(app)

    @app.before_serving
    async def prepare() -> None:
        # Another server runs the app, and nobody has set up logging.
        if not logging.getLogger(app.name).hasHandlers():
            configure_logging(tenants.settings)
        check_secret_key(app)
        await hasher.warm()

    app.after_serving(hasher.close)
    app.asgi_app = LingeringClose(app.asgi_app, app.config["MAX_CONTENT_LENGTH"])  # type: ignore[method-assign]
    return app

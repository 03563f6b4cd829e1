"""What the apps of these tests have in common."""

from typing import Any

from quart import Quart

from quart_tenants import QuartTenants
from tests.support.databases import REFERENCE_FILES

SECRET_KEY = "0123456789abcdef0123456789abcdef"


def make_app(database_url: str, **config: Any) -> tuple[Quart, QuartTenants]:
    """Return an app without pages. The reference app's tenants are in *database_url*."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(
        TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url, SECRET_KEY=SECRET_KEY, **config
    )
    return app, QuartTenants(app)

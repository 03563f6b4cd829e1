"""Load the app to serve, and check that it can be served."""

import asyncio
import importlib
import traceback
from collections.abc import Callable
from pathlib import Path

from quart import Quart, cli
from quart.cli import NoAppException, ScriptInfo

from quart_tenants.errors import SettingError, TenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.doctor.catalogue_checks import refuse_leaks
from quart_tenants.settings import Settings
from quart_tenants.web.sessions.secret_keys import check_secret_key
from quart_tenants.web.state import find_state

Application = str | Callable[[], Quart]
"""The app to serve: its name as `quart --app` takes it, such as `notes:create_app()`, or a function that makes it."""


def load_app(application: Application) -> tuple[Quart, Settings]:
    """Return the app and its settings. A name is looked up as `quart --app` does it, from the current folder on.

    Raises:
        SettingError: There is no such app, it cannot be imported or made, or it has no tenants.
        TenantError: The app itself refuses to be made, such as for a wrong setting.
    """
    try:
        if callable(application):
            app = application()
        else:
            # The parent of this process may have looked into the folder before there was the module in it.
            importlib.invalidate_caches()
            app = ScriptInfo(application, set_debug_flag=False).load_app()
    except TenantError:
        raise
    except (Exception, SystemExit) as error:
        raise SettingError(f"the app {application!r}", f"cannot be loaded: {_describe(error)}") from error
    state = find_state(app)
    if state is None:
        raise SettingError(f"the app {application!r}", "has no tenants: call QuartTenants(app)")
    state.refuse_late_settings(app)
    return app, state.settings


def check_app(app: Quart, settings: Settings) -> None:
    """Make sure that *app* can serve with *settings*, and that its database does not leak.

    Raises:
        SettingError: A setting is missing or wrong, such as SECRET_KEY.
        DatabaseUnavailableError: The database cannot be reached.
        RegistryNotReadyError: `quart-tenants init` has not run.
        LeakError: The database would let one tenant see another one's rows.
    """
    check_secret_key(app)
    asyncio.run(_check_database(settings))


async def _check_database(settings: Settings) -> None:
    async with await Database.open(settings, max_size=1) as database:
        await refuse_leaks(database, settings=settings)


def _describe(error: BaseException) -> str:
    """Return in one line what *error* says, and where it was raised."""
    if isinstance(error, NoAppException):
        cause = error.__context__
        # If the module itself fails to import another one, Quart's message is a whole traceback.
        if not isinstance(cause, ImportError) or "\n" not in error.message:
            return error.message
        error = cause
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and frame.filename != cli.__file__
    ]
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError):
        # Its text names the place.
        return said
    if not frames:
        return f"{said}; the current folder is {Path.cwd()}"
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno})"

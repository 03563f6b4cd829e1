"""Set up logging for processes of our own: `serve`, `demo` and their workers."""

import logging
import sys
from types import TracebackType

from quart_tenants.audit import logger as audit_logger
from quart_tenants.settings import Settings
from quart_tenants.web.logs.log_format import LogHandler

SERVER_LOGGER = logging.getLogger("hypercorn.error")
"""For `errorlog` of Hypercorn's configuration, so that Hypercorn's lines look like all others."""

_NEVER = logging.CRITICAL + 1
_TOLD_BY_OTHERS = (
    # Each pool writes this with a traceback, again and again while the database is away. The registry says it once.
    ("asyncpg.pool", "Failed to restore the pool connection floor"),
    # Each worker would write this. `serve` prints the addresses, and the supervisor tells which worker started.
    ("hypercorn.error", "Running on "),
)


def configure_logging(settings: Settings) -> None:
    """Write the lines of all loggers of this process to stderr, as `TENANTS_LOG_FORMAT` and `TENANTS_LOG_LEVEL` say.

    This replaces what is set up already. A library must not do that, so call it in processes of our own only.
    """
    handler = LogHandler(sys.stderr, settings.log_format)
    # Under Hypercorn's own program a handler of its own has written its lines already.
    handler.addFilter(_is_unwritten)
    handler.addFilter(_is_news)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    # Audit lines are written at every level of importance.
    audit_logger.setLevel(logging.INFO if settings.audit else _NEVER)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_crash


def follow_app_settings(settings: Settings) -> None:
    """Write the log as the app's *settings* say, unless the app has set up logging itself while it was loaded."""
    if [type(handler) for handler in logging.getLogger().handlers] == [LogHandler]:
        configure_logging(settings)


def _is_unwritten(record: logging.LogRecord) -> bool:
    # Libraries, and Python's own warnings, have a handler that writes nothing.
    return all(isinstance(handler, logging.NullHandler) for handler in logging.getLogger(record.name).handlers)


def _is_news(record: logging.LogRecord) -> bool:
    return not any(record.name == name and str(record.msg).startswith(start) for name, start in _TOLD_BY_OTHERS)


def _log_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, Exception):
        logging.getLogger(__name__).critical("the process ends by an error", exc_info=(kind, error, trace))
    else:
        # Such as Ctrl-C.
        sys.__excepthook__(kind, error, trace)

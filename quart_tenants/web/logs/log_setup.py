"""Set up logging for the processes that we start: `serve`, `demo` and their workers."""

import logging
import sys
from types import TracebackType

from quart import Quart

from quart_tenants.audit import logger as audit_logger
from quart_tenants.settings import Settings
from quart_tenants.web.logs.log_format import LogHandler

SERVER_LOGGER = logging.getLogger("hypercorn.error")
"""For `errorlog` of Hypercorn's configuration, so that Hypercorn writes its lines in the same format."""

_NEVER = logging.CRITICAL + 1
_TOLD_BY_OTHERS = (
    # Each pool would write this with a traceback, again and again while the database is away. The registry says it
    # once.
    ("asyncpg.pool", "Failed to restore the pool connection floor"),
    # Each worker would write this. `serve` prints the addresses, and the supervisor says which worker started.
    ("hypercorn.error", "Running on "),
)


def configure_logging(settings: Settings) -> None:
    """Write the lines of all loggers of this process to stderr, as `TENANTS_LOG_FORMAT` and `TENANTS_LOG_LEVEL` say.

    This replaces the logging that is set up already. A library must not do that, so it is only for our own processes.
    """
    handler = LogHandler(sys.stderr, settings.log_format)
    # Under Hypercorn's own program a handler of Hypercorn has written its lines already.
    handler.addFilter(lambda record: not logging.getLogger(record.name).handlers)
    handler.addFilter(_is_news)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    # The audit does not depend on the log level.
    audit_logger.setLevel(logging.INFO if settings.audit else _NEVER)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_crash


def configure_logging_if_nobody_has(app: Quart, settings: Settings) -> None:
    """Configure logging as `configure_logging` does, if another server runs *app* and has set up no logging."""
    if not logging.getLogger(app.name).hasHandlers():
        configure_logging(settings)


def _is_news(record: logging.LogRecord) -> bool:
    return not any(record.name == name and str(record.msg).startswith(start) for name, start in _TOLD_BY_OTHERS)


def _log_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, Exception):
        logging.getLogger(__name__).critical("the process ends by an error", exc_info=(kind, error, trace))
    else:
        # Such as Ctrl-C.
        sys.__excepthook__(kind, error, trace)

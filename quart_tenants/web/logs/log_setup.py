"""Set up logging for the processes that we start: `serve`, `demo` and their workers."""

import logging
import sys
from types import TracebackType

from quart import Quart

from quart_tenants.audit import logger as audit_logger
from quart_tenants.settings import Settings
from quart_tenants.web.logs.log_format import LogHandler

SERVER_LOGGER = logging.getLogger("hypercorn.error")
"""For `errorlog` of Hypercorn's configuration: it then writes as everybody else does."""

_NEVER = logging.CRITICAL + 1
_TOLD_BY_OTHERS = (
    # With a traceback, from each pool and ever again while the database is away; the registry says it once.
    ("asyncpg.pool", "Failed to restore the pool connection floor"),
    # The same from each worker; `serve` prints the addresses, and the supervisor tells which worker started.
    ("hypercorn.error", "Running on "),
)


def configure_logging(settings: Settings) -> None:
    """Write what all loggers of this process say on stderr, as `TENANTS_LOG_FORMAT` and `TENANTS_LOG_LEVEL` say.

    Replaces what is set up already. A library must not do that: only for processes of our own.
    """
    handler = LogHandler(sys.stderr, settings.log_format)
    # Under Hypercorn's own program its lines have been written by a handler of its own.
    handler.addFilter(lambda record: not logging.getLogger(record.name).handlers)
    handler.addFilter(_is_news)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    # Who did what is no question of importance.
    audit_logger.setLevel(logging.INFO if settings.audit else _NEVER)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_crash


def configure_logging_if_nobody_has(app: Quart, settings: Settings) -> None:
    """Do the same where a server of somebody else's runs *app* and has set up nothing."""
    if not logging.getLogger(app.name).hasHandlers():
        configure_logging(settings)


def _is_news(record: logging.LogRecord) -> bool:
    return not any(record.name == name and str(record.msg).startswith(start) for name, start in _TOLD_BY_OTHERS)


def _log_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, Exception):
        logging.getLogger(__name__).critical("the process ends by an error", exc_info=(kind, error, trace))
    else:
        # Ctrl-C, and what is like it.
        sys.__excepthook__(kind, error, trace)

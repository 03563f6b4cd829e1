"""Format the log lines of all loggers, as JSON for programs or as text for people."""

import logging
import re
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog
from structlog.stdlib import ProcessorFormatter, add_log_level, add_logger_name

from quart_tenants.postgres.driver.refusals import describe_without_values
from quart_tenants.web.logs.log_fields import add_log_fields
from quart_tenants.web.logs.tracebacks import format_error

_Event = MutableMapping[str, Any]

# From here on lines of asyncio and uvloop show the arguments of a callback, or the result or exception of a task.
_SHOWN_BY_ASYNCIO = re.compile(r"\((?!\)).*|\b(?:exception|result)=.*")


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes lines in the format of `TENANTS_LOG_FORMAT`."""

    def __init__(self, stream: TextIO, log_format: str) -> None:
        super().__init__(stream)
        self.setFormatter(_Formatter(log_format, colors=stream.isatty()))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Log where the lost line came from. What logging itself would print contains the line's arguments."""
        try:
            told = f"a line could not be written: {record.pathname}:{record.lineno}"
            lost = logging.LogRecord(record.name, logging.ERROR, record.pathname, record.lineno, told, (), None)
            self.stream.write(self.format(lost) + self.terminator)
        except (OSError, ValueError):
            # The stream is closed, for example. There is no other way to report this.
            return


class _Formatter(ProcessorFormatter):
    """Every line has timestamp, level, logger and event. Inside a request it has request_id and tenant as well."""

    def __init__(self, log_format: str, *, colors: bool) -> None:
        as_json = log_format == "json"
        render = (
            structlog.processors.JSONRenderer(default=str)
            if as_json
            else structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0)
        )
        super().__init__(
            foreign_pre_chain=[add_log_level, add_logger_name, _add_facts],
            processors=[
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                add_log_fields,
                _add_traceback,
                self.remove_processors_meta,
                _put_in_order if as_json else _escape_controls,
                render,
            ],
        )

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for *record*. Exceptions among its arguments show no rows of a table."""
        shown = logging.makeLogRecord(vars(record))
        if record.name == "asyncio":
            # Its further lines show tasks, handles and contexts, and with them the exception by its own repr.
            told, _, _ = record.getMessage().partition("\n")
            shown.msg, shown.args = _SHOWN_BY_ASYNCIO.sub("…", told), ()
        elif isinstance(record.args, Mapping):
            shown.args = {name: _cut(value) for name, value in record.args.items()}
        elif record.args:
            shown.args = tuple(map(_cut, record.args))
        return super().format(shown)


def _cut(value: object) -> object:
    return describe_without_values(value) if isinstance(value, BaseException) else value


def _add_facts(_logger: object, _method: str, event: _Event) -> _Event:
    # Only facts of our own are added. Records of other libraries may carry anything.
    record = event["_record"]
    facts = getattr(record, "facts", None)
    if isinstance(facts, dict):
        event["event"] = record.event
        for name, value in facts.items():
            event.setdefault(name, value)
    return event


def _add_traceback(_logger: object, _method: str, event: _Event) -> _Event:
    # The traceback of the renderers would show local variables, such as passwords and cookies.
    given = event.pop("exc_info", None)
    error = given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event["exception"] = format_error(error)
    stack = event.pop("stack_info", None)
    if stack:
        event["stack"] = stack
    return event


def _put_in_order(_logger: object, _method: str, event: _Event) -> _Event:
    first = ("timestamp", "level", "logger", "event", "request_id", "tenant")
    return {name: event[name] for name in first if name in event} | {
        name: value for name, value in event.items() if name not in first
    }


def _escape_controls(_logger: object, _method: str, event: _Event) -> _Event:
    """Escape control characters, so that no text of a visitor begins a new line or controls the terminal."""
    for name, value in event.items():
        if isinstance(value, str):
            kept = "\n" if name in ("exception", "stack") else ""
            event[name] = "".join(
                letter if letter.isprintable() or letter in kept else letter.encode("unicode_escape").decode()
                for letter in value
            )
    return event

"""Format log lines, of everybody's loggers: for programs as JSON, or for people."""

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

# Where asyncio and uvloop begin to show arguments of a callback, or what a task has returned or raised.
_SHOWN_BY_ASYNCIO = re.compile(r"\((?!\)).*|\b(?:exception|result)=.*")


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes lines as `TENANTS_LOG_FORMAT` says."""

    def __init__(self, stream: TextIO, log_format: str) -> None:
        super().__init__(stream)
        self.setFormatter(_Formatter(log_format, colors=stream.isatty()))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Say which line is lost. What logging itself would print has the line's arguments in it."""
        try:
            told = f"a line could not be written: {record.pathname}:{record.lineno}"
            lost = logging.LogRecord(record.name, logging.ERROR, record.pathname, record.lineno, told, (), None)
            self.stream.write(self.format(lost) + self.terminator)
        except (OSError, ValueError):
            # Such as of a closed stream: there is nobody to tell.
            return


class _Formatter(ProcessorFormatter):
    """Every line has timestamp, level, logger and event; inside a request request_id and tenant as well."""

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
        """Return the line for *record*, in which exceptions among the arguments show no rows."""
        args = record.args
        if record.name == "asyncio":
            # In further lines it shows the tasks, handles and contexts: with the exception as its own repr tells it.
            told, _, _ = record.getMessage().partition("\n")
            record = logging.makeLogRecord(vars(record))
            record.msg, record.args = _SHOWN_BY_ASYNCIO.sub("…", told), ()
        elif isinstance(args, tuple) and any(isinstance(value, BaseException) for value in args):
            record = logging.makeLogRecord(vars(record))
            record.args = tuple(_cut(value) for value in args)
        elif isinstance(args, Mapping):
            record = logging.makeLogRecord(vars(record))
            record.args = {name: _cut(value) for name, value in args.items()}
        return super().format(record)


def _cut(value: object) -> object:
    return describe_without_values(value) if isinstance(value, BaseException) else value


def _add_facts(_logger: object, _method: str, event: _Event) -> _Event:
    # Of ours only: what others attach to their records may hold anything.
    record = event["_record"]
    facts = getattr(record, "facts", None)
    if isinstance(facts, dict):
        event["event"] = record.event
        for name, value in facts.items():
            event.setdefault(name, value)
    return event


def _add_traceback(_logger: object, _method: str, event: _Event) -> _Event:
    # The renderers' own would show local variables: passwords, cookies.
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
    """Let nothing that a visitor sent begin a line of its own, or command the terminal."""
    for name, value in event.items():
        if isinstance(value, str):
            kept = "\n" if name in ("exception", "stack") else ""
            event[name] = "".join(
                letter if letter.isprintable() or letter in kept else letter.encode("unicode_escape").decode()
                for letter in value
            )
    return event

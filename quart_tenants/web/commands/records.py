"""Write an audit line for each command: who ran it, its arguments, and how it ended."""

import asyncio
import contextlib
import functools
import logging
import os
import pwd
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import click

from quart_tenants.audit import audit
from quart_tenants.audit import logger as audit_logger
from quart_tenants.errors import TenantError
from quart_tenants.long_lists import name_some
from quart_tenants.settings import Settings
from quart_tenants.web.logs.log_format import LogHandler

F = TypeVar("F", bound=Callable[..., Any])

_HARMLESS = "_quart_tenants_changes_nothing"
_RECORDED = "_quart_tenants_recorded"
# Of a list of a thousand slugs or schemas the line says how many they are. The command's own output has all of them.
_MOST_TOLD = 20
_DATABASE_URL = re.compile(r"postgres(?:ql)?://\S*", re.IGNORECASE)


def changes_nothing(command: F) -> F:
    """Write no audit line for *command*, because it only reads, or writes audit lines itself."""
    setattr(command, _HARMLESS, True)
    return command


def record_runs(command: click.Command, find_settings: Callable[[], Settings]) -> None:
    """Let *command*, or all commands of a group, write an audit line at the end."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            record_runs(inner, find_settings)
        return
    run = command.callback
    # A command object may be in several groups: quart-tenants, and the group of each app.
    if run is None or hasattr(run, _HARMLESS) or hasattr(run, _RECORDED):
        return

    @functools.wraps(run)
    def run_and_record(*args: Any, **kwargs: Any) -> Any:
        context = click.get_current_context()
        outcome = "ok"
        try:
            return run(*args, **kwargs)
        except BaseException as error:
            outcome = _name_outcome(error)
            raise
        finally:
            if not context.params.get("dry_run"):
                _record(context, outcome, find_settings)

    setattr(run_and_record, _RECORDED, True)
    command.callback = run_and_record


def _record(context: click.Context, outcome: str, find_settings: Callable[[], Settings]) -> None:
    try:
        settings = find_settings()
    except (TenantError, click.ClickException):
        # With a wrong setting the command has done nothing.
        return
    if not settings.audit:
        return
    with _open_log(settings):
        audit(
            "command_ended",
            command=context.command_path,
            arguments=_describe_arguments(context),
            os_user=find_os_user(),
            sudo_user=os.environ.get("SUDO_USER"),
            database_role=_find_role(settings),
            outcome=outcome,
        )


@contextlib.contextmanager
def _open_log(settings: Settings) -> Iterator[None]:
    """Send audit lines to stderr, unless that is a terminal or the app has set up logging itself."""
    if audit_logger.hasHandlers() or (sys.stderr.isatty() and settings.log_format != "json"):
        yield
        return
    handler = LogHandler(sys.stderr, settings.log_format)
    level = audit_logger.level
    audit_logger.addHandler(handler)
    audit_logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        audit_logger.removeHandler(handler)
        audit_logger.setLevel(level)


def _name_outcome(error: BaseException) -> str:
    match error:
        case TenantError():
            return error.code
        case KeyboardInterrupt() | asyncio.CancelledError() | click.Abort():
            return "interrupted"
        case SystemExit(code=0 | None) | click.exceptions.Exit(exit_code=0):
            return "ok"
        case click.UsageError():
            return "usage"
        case click.ClickException() | SystemExit() | click.exceptions.Exit():
            return "failed"
        case _:
            return type(error).__name__


def _describe_arguments(context: click.Context) -> str:
    """Return the arguments as typed. They have no password, which comes by standard input."""
    told = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        value = context.params.get(name)
        values = value if isinstance(value, tuple | list) else (value,)
        texts = [_DATABASE_URL.sub("postgresql://…", str(getattr(one, "name", one))) for one in values]
        told.append(f"{name}={name_some(texts, _MOST_TOLD, separator=',')}")
    return " ".join(told)


def find_os_user() -> str:
    """Return the name of the user who runs this program, or the number of one without a name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        # The user of a container often has no name.
        return str(os.getuid())


def _find_role(settings: Settings) -> str | None:
    """Return the role that logs in, or None if it is named like the system's user."""
    parts = urlsplit(settings.database_url or "")
    named = parts.username or dict(parse_qsl(parts.query)).get("user")
    return unquote(named) if named else os.environ.get("PGUSER")

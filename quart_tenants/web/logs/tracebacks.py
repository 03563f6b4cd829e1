"""Format a traceback for the log, without local variables, rows and parameters."""

import traceback
from collections.abc import Iterator

from quart_tenants.postgres.driver.refusals import describe_without_values, quotes_a_value

_CAUSED = "\nThe above exception was the direct cause of the following exception:\n"
_MEANWHILE = "\nDuring handling of the above exception, another exception occurred:\n"


def format_error(error: BaseException) -> str:
    """Return the traceback of *error*, and of the exceptions before it, as Python shows it.

    Python's own function calls `str` on each exception. For an exception of PostgreSQL that includes the DETAIL, which
    quotes the row.
    """
    return "\n".join(_format_chain(error, seen=set(), hidden=False))


def _format_chain(error: BaseException, seen: set[int], *, hidden: bool) -> Iterator[str]:
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _format_chain(before, seen, hidden=quotes_a_value(error))
        yield _MEANWHILE if error.__cause__ is None else _CAUSED
    if error.__traceback__ is not None:
        yield "Traceback (most recent call last):"
        yield "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    text = "" if hidden else _describe(error)
    yield f"{name}: {text}" if text else name
    yield from getattr(error, "__notes__", ())
    if isinstance(error, BaseExceptionGroup):
        for number, one in enumerate(error.exceptions, start=1):
            if id(one) not in seen:
                yield f"---- {number} of {len(error.exceptions)} ----"
                yield from _format_chain(one, seen, hidden=hidden)


def _describe(error: BaseException) -> str:
    try:
        return describe_without_values(error)
    except Exception as broken:  # noqa: BLE001  (The exception's own __str__ may fail, and the line must be written.)
        return f"<{type(broken).__name__} in its __str__>"

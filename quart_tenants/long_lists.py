"""Name the first few of many in a message."""

from collections.abc import Sequence


def name_some(names: Sequence[str], most: int = 5, *, separator: str = ", ") -> str:
    """Return the first *most* of *names* as text, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more

"""Print rows: a table on a terminal, and lines with tabs for programs."""

import sys
from collections.abc import Sequence

import click


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print *rows* on stdout; the names of the *columns* stand above the table on a terminal only."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
    elif rows:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, box=None, pad_edge=False)
        for row in rows:
            # As Text, because rich reads [red] and :smile: in a plain str as its own markup.
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)

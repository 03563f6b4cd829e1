"""Read a list of tenants from CSV, and find all mistakes in it. Pure: no I/O."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field

from quart_tenants.errors import TenantError
from quart_tenants.tenant import Slug, parse_display_name, parse_slug

_COLUMNS = ("slug", "name")


@dataclass(slots=True)
class TenantList:
    """The content of a file.

    Attributes:
        names: The display names by slug, in the order of the file.
        lines: The line of each slug, from 1.
        mistakes: Pairs of a line and what is wrong there.
    """

    names: dict[Slug, str] = field(default_factory=dict)
    lines: dict[Slug, int] = field(default_factory=dict)
    mistakes: list[tuple[int, str]] = field(default_factory=list)


def parse_tenant_list(content: bytes) -> TenantList:
    """Return the tenants in *content*: UTF-8, quoted as in RFC 4180, with the header `slug,name` or `slug`.

    An empty name means the slug. Empty lines are skipped.
    """
    tenants = TenantList()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        tenants.mistakes.append((line, "it is not UTF-8; save the file in that encoding"))
        return tenants
    columns: list[str] | None = None
    for line, record in _read_records(text):
        if isinstance(record, str):
            tenants.mistakes.append((line, record))
        elif columns is None:
            columns = record
            if (problem := _find_problem(columns)) is not None:
                tenants.mistakes.append((line, problem))
                return tenants
        else:
            _add(tenants, line, columns, record)
    if columns is None:
        tenants.mistakes.append((1, "the file is empty; it begins with the line slug,name"))
    return tenants


def _read_records(text: str) -> Iterator[tuple[int, list[str] | str]]:
    """Yield each record with the line on which it begins; at the end why the rest cannot be read, if so."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"it is no CSV ({error}); a quote inside quotes is written twice"
            return
        if record:
            yield line, record


def _find_problem(columns: list[str]) -> str | None:
    unknown = [column for column in columns if column not in _COLUMNS]
    if unknown:
        return f"{unknown[0]!r} is no column; the file begins with slug,name or slug, and has commas between"
    if len(set(columns)) < len(columns):
        return "a column stands there twice"
    return None if "slug" in columns else "there is no column slug"


def _add(tenants: TenantList, line: int, columns: list[str], record: list[str]) -> None:
    if len(record) != len(columns):
        tenants.mistakes.append(
            (line, f"{record[0]!r}: there are {len(record)} fields where the header has {len(columns)}")
        )
        return
    fields = dict(zip(columns, record, strict=True))
    try:
        slug = parse_slug(fields["slug"])
        name = parse_display_name(fields.get("name") or slug)
    except TenantError as error:
        # The error repeats a wrong name, but not the slug beside it.
        prefix = "" if repr(fields["slug"]) in str(error) else f"{fields['slug']!r}: "
        tenants.mistakes.append((line, f"{prefix}{error}"))
        return
    if slug in tenants.lines:
        tenants.mistakes.append((line, f"{slug!r} stands in line {tenants.lines[slug]} already"))
        return
    tenants.names[slug] = name
    tenants.lines[slug] = line

"""Say what a tenant is and what it may be called. Pure: no I/O."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NewType

from quart_tenants.errors import InvalidNameError, InvalidSchemaNameError, InvalidSlugError

Slug = NewType("Slug", str)
"""A tenant's subdomain, checked by `parse_slug`.

Example:
    >>> from quart_tenants.admin import Slug, parse_slug
    >>> slug: Slug = parse_slug("acme")
"""

# One DNS label (RFC 1035, section 2.3.1, relaxed by RFC 1123, section 2.1: a digit may come first).
# Its 63 characters are also the 63 bytes that PostgreSQL keeps of a name.
SLUG_PATTERN = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"

REGISTRY_SCHEMA = "quart_tenants"
"""The schema that holds the registry. No tenant may have it, or a schema whose name begins with it and `_`."""

_SLUG = re.compile(SLUG_PATTERN)
_MAX_NAME_BYTES = 63
_MAX_DISPLAY_NAME_LENGTH = 200
# "$user" in a search_path means the role's own schema, also when it is quoted.
_RESERVED_NAMES = frozenset({"public", "information_schema", "$user", REGISTRY_SCHEMA})


@dataclass(frozen=True, slots=True)
class _Identifier:
    name: str

    @property
    def quoted(self) -> str:
        """The name as an SQL identifier. Nothing else in this package quotes one."""
        return '"' + self.name.replace('"', '""') + '"'

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class SchemaName(_Identifier):
    """The name of a tenant's schema, checked by `parse_schema_name`.

    Example:
        >>> from quart_tenants.admin import parse_schema_name
        >>> parse_schema_name("Acme Ltd").quoted
        '"Acme Ltd"'
    """


@dataclass(frozen=True, slots=True)
class RoleName(_Identifier):
    """The name of a role that this package made: a tenant's role, or the owner role of all tenants' schemas."""


NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})
"""The settings of most tenants."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """One customer: one subdomain, one schema.

    Attributes:
        id: The registry's number. It is never used again after a drop. So a session of a dropped
            tenant is worth nothing at the next tenant of that name.
        slug: The label before the domain.
        schema: The schema that holds the tenant's tables.
        name: The display name.
        version: The number of the newest migration that ran in the schema; 0 for none.
        suspended: Whether the tenant is kept but not served.
        role: The role that its blocks enter if each tenant has one; None if it has none yet.
        settings: What the app remembers about the tenant, as JSON has it. It cannot be changed here.

    Example:
        ```python
        @app.get("/plan", host=tenants.host)
        async def plan() -> ResponseReturnValue:
            tenant = find_tenant()
            return {"plan": None if tenant is None else tenant.settings.get("plan")}
        ```
    """

    id: int
    slug: Slug
    schema: SchemaName
    name: str
    version: int = 0
    suspended: bool = False
    role: RoleName | None = None
    settings: Mapping[str, Any] = field(default_factory=lambda: NO_SETTINGS)

    def __hash__(self) -> int:
        # Every request needs it. The number is enough: tenants with the same number are compared in full.
        return self.id


def quote_literal(literal: str | int) -> str:
    """Return *literal* as SQL, for where no parameter can be given."""
    if isinstance(literal, int):
        return str(literal)
    quoted = literal.replace("'", "''")
    # As PostgreSQL's function of that name does it: right with any standard_conforming_strings.
    return "E'" + quoted.replace("\\", "\\\\") + "'" if "\\" in quoted else f"'{quoted}'"


def parse_slug(text: str) -> Slug:
    """Return *text* as a slug.

    Raises:
        InvalidSlugError: *text* is reserved, or no DNS label in lower case.

    Example:
        >>> from quart_tenants.admin import parse_slug
        >>> parse_slug("acme")
        'acme'
    """
    reason = _find_reserved(text)
    if reason is None and not _SLUG.fullmatch(text):
        reason = "use 1 to 63 of a-z, 0-9 and -, with no - at either end"
    # An internationalised label (RFC 5890, section 2.3.1). It is a second spelling of a name and may look like
    # another tenant's name to a person.
    if reason is None and text[2:4] == "--":
        reason = "punycode names (xn--…) are not accepted"
    if reason is not None:
        raise InvalidSlugError(text, reason)
    return Slug(text)


def parse_schema_name(text: str) -> SchemaName:
    """Return *text* as the name of a tenant's schema. Case and blanks are kept as they are.

    Raises:
        InvalidSchemaNameError: *text* is reserved, empty, or longer than PostgreSQL keeps.

    Example:
        >>> from quart_tenants.admin import parse_schema_name
        >>> parse_schema_name("acme").quoted
        '"acme"'
    """
    reason = _find_reserved(text)
    if reason is None and not text:
        reason = "it is empty"
    if reason is None and ("\0" in text or not text.isprintable()):
        reason = "it has characters that cannot be printed"
    # PostgreSQL would silently cut off the rest, and two tenants could share one schema.
    if reason is None and len(text.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES:
        reason = f"it is longer than {_MAX_NAME_BYTES} bytes"
    if reason is not None:
        raise InvalidSchemaNameError(text, reason)
    return SchemaName(text)


def parse_display_name(text: str) -> str:
    """Return *text* as the display name of a tenant, without blanks at its ends.

    Raises:
        InvalidNameError: It is empty, longer than 200 characters, or not printable.
    """
    name = text.strip()
    if not 0 < len(name) <= _MAX_DISPLAY_NAME_LENGTH or not name.isprintable():
        raise InvalidNameError(
            f"{text!r} cannot be a tenant's name: use 1 to {_MAX_DISPLAY_NAME_LENGTH} printable characters"
        )
    return name


def _find_reserved(text: str) -> str | None:
    name = text.lower()
    if name.startswith(("pg_", f"{REGISTRY_SCHEMA}_")) or name in _RESERVED_NAMES:
        return "the name is reserved"
    return None

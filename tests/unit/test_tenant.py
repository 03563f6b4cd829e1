"""Names: what a tenant, its schema and its customer may be called."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quart_tenants.errors import InvalidNameError, InvalidSchemaNameError, InvalidSlugError
from quart_tenants.postgres.tenants.free_names import check_not_reserved
from quart_tenants.settings import Settings
from quart_tenants.tenant import REGISTRY_SCHEMA, SchemaName, parse_display_name, parse_schema_name, parse_slug

LABEL_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")

# Near misses are what finds bugs: half of the texts are made of the accepted characters and their neighbours.
SLUG_LIKE = st.text("abz019-._ABZ\n'\";") | st.text()


@pytest.mark.parametrize("text", ["acme", "a", "7", "4u", "a-b", "a--b", "a" * 63, "public2", "pg", "pgx", "xn-a"])
def test_slug_is_a_label_in_lower_case(text: str) -> None:
    """One DNS label in lower case is a slug."""
    assert parse_slug(text) == text


@pytest.mark.parametrize(
    "text", ["public", "PUBLIC", "pg_x", "pg_catalog", "PG_temp_1", "information_schema", "Information_Schema"]
)
def test_slug_is_no_schema_of_postgresqls_own(text: str) -> None:
    """What names a schema of PostgreSQL is reserved, in any case."""
    with pytest.raises(InvalidSlugError, match="reserved"):
        parse_slug(text)


def test_slug_is_not_the_registrys_schema() -> None:
    """The registry's own schema is nobody's tenant."""
    with pytest.raises(InvalidSlugError, match="reserved"):
        parse_slug(REGISTRY_SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Acme",
        "ACME",
        "a" * 64,
        "a.b",
        "a..b",
        ".a",
        "a.",
        "-a",
        "a-",
        "a_b",
        "a b",
        " a",
        "a ",
        "a\n",
        "\na",
        "a\0",
        "a/b",
        "a%62",
        "x';--",
        'x"',
        "bücher",
        "\u0430cme",  # a Cyrillic a
        "\u212aelvin",  # the Kelvin sign, whose lower case is the letter k
        "\u017f",  # a long s, whose upper case is S
        "\uff41",  # a full-width a
        "a\u00ad",  # a soft hyphen
        "\u0661",  # an Arabic-Indic one
        "\ud800",
    ],
)
def test_slug_is_nothing_else(text: str) -> None:
    """What is no DNS label in lower-case ASCII is refused, and the message says what to use."""
    with pytest.raises(InvalidSlugError, match="use 1 to 63 of a-z, 0-9 and -") as caught:
        parse_slug(text)

    assert caught.value.text == text


@pytest.mark.parametrize("text", ["xn--bcher-kva", "xn--80ak6aa92e", "ab--c"])
def test_slug_is_no_punycode(text: str) -> None:
    """An internationalised label is refused: a person cannot tell it from another one."""
    with pytest.raises(InvalidSlugError, match="punycode"):
        parse_slug(text)


@given(SLUG_LIKE)
@example("a\n")
@example("-")
def test_accepted_slug_is_a_dns_label_and_quotes_to_itself(text: str) -> None:
    """Whatever is accepted is a DNS label, and a schema name that needs no escaping."""
    try:
        slug = parse_slug(text)
    except InvalidSlugError:
        return

    assert slug == text
    assert 1 <= len(slug.encode("ascii")) <= 63
    assert set(slug) <= LABEL_CHARACTERS
    assert not slug.startswith("-")
    assert not slug.endswith("-")
    assert parse_schema_name(slug).quoted == f'"{slug}"'


@pytest.mark.parametrize("text", ["AcmeCorp", "acme corp", 'we"ird', "we=ird", "Ünïcödé", "a" * 63, "ö" * 31, "pgx"])
def test_schema_name_is_kept_as_it_is(text: str) -> None:
    """A schema that exists keeps its name: case, blanks and quotes included."""
    assert str(parse_schema_name(text)) == text


@pytest.mark.parametrize("text", ["public", "Public", "pg_x", "PG_TOAST", "information_schema", REGISTRY_SCHEMA])
def test_schema_name_is_not_reserved(text: str) -> None:
    """Neither PostgreSQL's schemas nor the registry's are a tenant's."""
    with pytest.raises(InvalidSchemaNameError, match="reserved"):
        parse_schema_name(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("a" * 64, "63 bytes"),
        ("ö" * 32, "63 bytes"),
        ("a\n", "printed"),
        ("a\0b", "printed"),
        ("a\u202eb", "printed"),  # turns the direction of what follows
        ("\ud800", "printed"),
    ],
)
def test_schema_name_fits_postgresql(text: str, reason: str) -> None:
    """What PostgreSQL would cut off or could not hold is refused, with the reason."""
    with pytest.raises(InvalidSchemaNameError, match=reason):
        parse_schema_name(text)


@given(st.text('a"\\ ') | st.text(max_size=63))
@example('"; DROP SCHEMA "public')
def test_quoted_schema_name_reads_back(text: str) -> None:
    """The quoted form of any accepted name is one SQL identifier: that name, and nothing after it."""
    try:
        quoted = parse_schema_name(text).quoted
    except InvalidSchemaNameError:
        return

    inner = quoted.removeprefix('"').removesuffix('"')
    assert len(inner) == len(quoted) - 2
    assert '"' not in inner.replace('""', "")
    assert inner.replace('""', '"') == text


def test_schema_name_doubles_quotes() -> None:
    """A quote inside a name is doubled, as PostgreSQL wants it."""
    assert SchemaName('a"b').quoted == '"a""b"'


@pytest.mark.parametrize(("text", "name"), [("Acme", "Acme"), ("  Acme Inc. ", "Acme Inc."), ("株式会社", "株式会社")])
def test_display_name_loses_outer_blanks(text: str, name: str) -> None:
    """What people call a customer is kept, without the blanks around it."""
    assert parse_display_name(text) == name


@pytest.mark.parametrize("text", ["", "   ", "\n", "a\nb", "a\tb", "a\0b", "\x1b[31mred", "\ud800", "a" * 201])
def test_display_name_is_short_and_printable(text: str) -> None:
    """A name fits one line of a list and cannot drive the terminal."""
    with pytest.raises(InvalidNameError, match="1 to 200 printable characters"):
        parse_display_name(text)


def test_display_name_may_have_200_characters() -> None:
    """The limit itself is allowed."""
    assert parse_display_name("ä" * 200) == "ä" * 200


def test_visitor_reads_no_setting() -> None:
    """Who signs up with a reserved name reads that it is reserved, and not by what."""
    with pytest.raises(InvalidSlugError, match="TENANTS_RESERVED_SLUGS") as caught:
        check_not_reserved(parse_slug("admin"), Settings(reserved_slugs=frozenset({"admin"})))
    assert caught.value.visitor_text == "'admin' cannot be a tenant: the name is reserved"

"""Promise: a domain is served when its owner has proven it in DNS, or an operator vouched for it, and not before."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import dns.rcode
import pytest

from quart_tenants.dns_lookup import find_text_records
from quart_tenants.domain import Domain, parse_domain
from quart_tenants.errors import (
    DnsUnavailableError,
    DomainNotVerifiedError,
    DomainTakenError,
    InvalidDomainError,
    RecentlyDroppedError,
    TenantInTrashError,
    UnknownDomainError,
    UnknownTenantError,
)
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry import Registry
from quart_tenants.postgres.tenants.domains import CustomDomain, add_domain, list_domains, remove_domain
from quart_tenants.postgres.tenants.purge import purge_trash
from quart_tenants.postgres.tenants.trash import drop_tenant
from quart_tenants.settings import Settings, read_settings
from quart_tenants.tenant import Slug, Tenant, parse_slug
from tests.support.databases import let_names_rest
from tests.support.name_server import NameServer, run_name_server

SHOP = parse_domain("shop.example.com")
COUNT_OPEN = """
SELECT count(*) FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND state LIKE 'idle in transaction%'
"""


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    """The DNS that the settings name."""
    with run_name_server() as server:
        yield server


@pytest.fixture
def settings(database_url: str, name_server: NameServer) -> Settings:
    """Settings for `database_url` and `name_server`."""
    return read_settings({"TENANTS_DATABASE_URL": database_url, "TENANTS_DNS_SERVERS": name_server.address})


@pytest.fixture
async def registry(database: Database, settings: Settings) -> Registry:
    """What a worker knows."""
    registry = Registry(database, settings)
    await registry.load()
    return registry


async def claim(database: Database, slug: Slug, settings: Settings, domain: Domain = SHOP) -> CustomDomain:
    """Claim *domain* without proof, and return the claim."""
    with pytest.raises(DomainNotVerifiedError):
        await add_domain(database, slug, domain, settings=settings)
    (stored,) = [row for row in await list_domains(database, slug) if row.domain == domain]
    return stored


async def find_slug(registry: Registry, domain: Domain = SHOP) -> Slug | None:
    """Return whom a worker serves at *domain*, after a look at the feed."""
    await registry.refresh()
    return registry.find_slug_by_domain(domain)


def call_from_server(server: NameServer, settings: Settings, call: Callable[[Database], Awaitable[object]]) -> None:
    """Let *call* run on a database of its own while a question is on its way."""

    async def run() -> None:
        async with await Database.open(settings, max_size=1) as database:
            await call(database)

    server.on_question = lambda name: asyncio.run(run())


async def test_domain_is_served_when_dns_proves_it(
    database: Database, settings: Settings, acme: Tenant, name_server: NameServer, registry: Registry
) -> None:
    """The first call says which record to make; when it is there, the same call succeeds, and needs it no more."""
    first = await claim(database, acme.slug, settings)
    before = await find_slug(registry)
    second = await claim(database, acme.slug, settings)
    name_server.prove(first)
    verified = await add_domain(database, acme.slug, SHOP, settings=settings)
    name_server.records.clear()
    again = await add_domain(database, acme.slug, SHOP, settings=settings)

    assert (first.record_name, first.verified, before) == ("_quart-tenants.shop.example.com", False, None)
    assert second == first
    assert verified == again == replace(first, verified=True)
    assert await find_slug(registry) == "acme"


async def test_error_says_which_record_to_make(database: Database, settings: Settings, acme: Tenant) -> None:
    """Whoever reads the error knows the record's type, name and value."""
    with pytest.raises(DomainNotVerifiedError) as caught:
        await add_domain(database, acme.slug, SHOP, settings=settings)

    (stored,) = await list_domains(database)
    for words in ("type TXT", stored.record_name, f"quart-tenants={stored.token}", "run the command again"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("texts", [[], ["quart-tenants="], ["v=spf1 -all"], ["quart-tenants={other}"], ["{token}"]])
async def test_other_records_prove_nothing(
    database: Database, settings: Settings, acme: Tenant, globex: Tenant, name_server: NameServer, texts: list[str]
) -> None:
    """Only the claim's own token counts, in the form asked for: another tenant's token is not enough."""
    ours = await claim(database, acme.slug, settings)
    others = await claim(database, globex.slug, settings)
    name_server.records[ours.record_name] = [text.format(token=ours.token, other=others.token) for text in texts]

    assert await claim(database, acme.slug, settings) == ours


async def test_claim_without_proof_blocks_nobody(
    database: Database, settings: Settings, acme: Tenant, globex: Tenant, name_server: NameServer, registry: Registry
) -> None:
    """Anybody may claim; who proves it has it, and from then on nobody else."""
    await claim(database, acme.slug, settings)
    name_server.prove(await claim(database, globex.slug, settings))
    await add_domain(database, globex.slug, SHOP, settings=settings)

    for trusted in (False, True):
        with pytest.raises(DomainTakenError, match="domain remove shop"):
            await add_domain(database, acme.slug, SHOP, settings=settings, trusted=trusted)
    assert await find_slug(registry) == "globex"


async def test_domain_of_a_tenant_in_the_trash_is_taken(
    database: Database, settings: Settings, acme: Tenant, globex: Tenant, registry: Registry
) -> None:
    """It comes back with its tenant, so nobody else can have it meanwhile; it is not served."""
    await add_domain(database, acme.slug, SHOP, settings=settings, trusted=True)
    await drop_tenant(database, acme.slug)

    with pytest.raises(DomainTakenError):
        await add_domain(database, globex.slug, SHOP, settings=settings, trusted=True)
    with pytest.raises(TenantInTrashError):
        await add_domain(database, acme.slug, parse_domain("other.example.com"), settings=settings)
    assert await find_slug(registry) is None
    assert [row.slug for row in await list_domains(database)] == ["acme"]


async def test_removed_domain_can_move_to_another_tenant(
    database: Database, settings: Settings, acme: Tenant, globex: Tenant, registry: Registry
) -> None:
    """Removing forgets the proof and every claim; the next tenant proves it anew."""
    old = await add_domain(database, acme.slug, SHOP, settings=settings, trusted=True)
    await find_slug(registry)

    removed = await remove_domain(database, SHOP)
    between = await find_slug(registry)
    await let_names_rest(database)
    new = await add_domain(database, globex.slug, SHOP, settings=settings, trusted=True)

    assert (removed, between) == ([old], None)
    assert new.token != old.token
    assert await find_slug(registry) == "globex"
    await remove_domain(database, SHOP)
    with pytest.raises(UnknownDomainError):
        await remove_domain(database, SHOP)


async def test_domain_rests_before_another_tenant_has_it(
    database: Database, settings: Settings, acme: Tenant, globex: Tenant, registry: Registry
) -> None:
    """A worker that has not heard of it leads visitors to the last tenant; that one may have it back at once."""
    await add_domain(database, acme.slug, SHOP, settings=settings, trusted=True)
    await registry.refresh()
    await remove_domain(database, SHOP)
    with pytest.raises(RecentlyDroppedError, match=f"'{SHOP}' was another tenant's .* try again in 11 s"):
        await add_domain(database, globex.slug, SHOP, settings=settings, trusted=True)
    assert (await add_domain(database, acme.slug, SHOP, settings=settings, trusted=True)).verified
    await let_names_rest(database)
    await drop_tenant(database, acme.slug)
    await purge_trash(database, settings=settings, slugs=[acme.slug])
    with pytest.raises(RecentlyDroppedError):
        await add_domain(database, globex.slug, SHOP, settings=settings, trusted=True)

    # Negative control: the domain does not rest.
    await let_names_rest(database)
    await add_domain(database, globex.slug, SHOP, settings=settings, trusted=True)
    assert registry.find_slug_by_domain(SHOP) == "acme"
    assert await find_slug(registry) == "globex"


async def test_no_transaction_is_open_while_dns_is_asked(
    database: Database, settings: Settings, acme: Tenant, name_server: NameServer
) -> None:
    """A name server that does not answer keeps no connection, no lock and no snapshot."""
    seen: list[int] = []

    async def count_open(other: Database) -> None:
        async with other.connection() as connection:
            seen.append(await connection.fetchval(COUNT_OPEN))

    call_from_server(name_server, settings, count_open)
    await claim(database, acme.slug, settings)
    # Negative control: the question would be asked inside a transaction.
    async with database.connection() as connection:
        await connection.execute("SELECT")
        await find_text_records("example.com", settings)

    assert seen == [0, 1]


async def test_domain_is_one_tenants_whoever_is_faster(
    database: Database, settings: Settings, acme: Tenant, globex: Tenant, name_server: NameServer, registry: Registry
) -> None:
    """What another tenant gets while DNS is asked is not taken from it."""
    name_server.prove(await claim(database, acme.slug, settings))
    call_from_server(
        name_server, settings, lambda other: add_domain(other, globex.slug, SHOP, settings=settings, trusted=True)
    )

    with pytest.raises(DomainTakenError):
        await add_domain(database, acme.slug, SHOP, settings=settings)

    assert await find_slug(registry) == "globex"


async def test_claim_that_was_removed_meanwhile_is_not_verified(
    database: Database, settings: Settings, acme: Tenant, name_server: NameServer, registry: Registry
) -> None:
    """An operator who removes a domain while DNS is asked has the last word."""
    name_server.prove(await claim(database, acme.slug, settings))
    call_from_server(name_server, settings, lambda other: remove_domain(other, SHOP))

    with pytest.raises(UnknownDomainError):
        await add_domain(database, acme.slug, SHOP, settings=settings)

    assert await find_slug(registry) is None


async def test_dns_that_fails_is_told_apart_from_a_missing_record(
    database: Database, settings: Settings, acme: Tenant, name_server: NameServer
) -> None:
    """A server that cannot say, or says nothing, is no proof that the record is missing."""
    name = f"_quart-tenants.{SHOP}"
    name_server.records[name] = []
    await claim(database, acme.slug, settings)

    for failure in (dns.rcode.SERVFAIL, dns.rcode.REFUSED):
        name_server.failures[name] = failure
        with pytest.raises(DnsUnavailableError, match="TENANTS_DNS_SERVERS"):
            await add_domain(database, acme.slug, SHOP, settings=settings)
    name_server.failures[name] = None
    with pytest.raises(DnsUnavailableError, match="TENANTS_DNS_SERVERS"):
        await find_text_records(name, settings, timeout=0.2)


async def test_long_record_is_read_in_one_piece(settings: Settings, name_server: NameServer) -> None:
    """DNS cuts a text at 255 bytes."""
    text = "x" * 200
    name_server.records["a.example.com"] = [f'{text}" "{text}']

    assert await find_text_records("a.example.com", settings) == [text + text]


@pytest.mark.parametrize("text", ["example.org", "acme.example.org", "a.b.example.org", "sub.example.org"])
async def test_domain_of_all_tenants_is_nobodys_own(
    database: Database, settings: Settings, acme: Tenant, text: str
) -> None:
    """`TENANTS_DOMAIN`, and what is above and below it, has a meaning already."""
    inside = replace(settings, domain="sub.example.org" if text == "example.org" else "example.org")

    with pytest.raises(InvalidDomainError, match="outside"):
        await add_domain(database, acme.slug, parse_domain(text), settings=inside, trusted=True)


async def test_unknown_tenant_has_no_domains(database: Database, settings: Settings) -> None:
    """A typing error in the slug is told."""
    nobody = parse_slug("nobody")

    with pytest.raises(UnknownTenantError):
        await add_domain(database, nobody, SHOP, settings=settings)
    with pytest.raises(UnknownTenantError):
        await list_domains(database, nobody)

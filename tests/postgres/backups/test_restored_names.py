"""The names in a backup: what a restored tenant gets of them, and what it does not."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from quart_tenants.domain import Domain
from quart_tenants.errors import (
    DomainTakenError,
    FormerSlugError,
    InvalidDomainError,
    InvalidSlugError,
    TenantExistsError,
)
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.backup_files import read_backup
from quart_tenants.postgres.backups.manifests import Backup, FormerSlug, OwnDomain
from quart_tenants.postgres.backups.restore import restore_tenant
from quart_tenants.postgres.backups.restored_names import restore_names
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.postgres.tenants.domains import add_domain, list_domains
from quart_tenants.postgres.tenants.lifecycle import rename_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant
from tests.postgres.backups.parts import ACME, COPY, fetch

pytestmark = pytest.mark.slow

SHOP = Domain("shop.acme.test")
CLAIMED = Domain("claimed.acme.test")
FORMER = Slug("acme-old")
GET_FORMER = "SELECT slug FROM quart_tenants.former_slugs AS f WHERE tenant_id = $1 ORDER BY slug"


@pytest.fixture
async def backup(database: Database, settings: Settings, tmp_path: Path) -> Backup:
    """What the backup of a tenant says that has a domain of its own and a slug that leads to it."""
    await rename_tenant(database, ACME, FORMER, settings=settings)
    await rename_tenant(database, FORMER, ACME, settings=settings)
    await add_domain(database, ACME, SHOP, settings=settings, trusted=True)
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO quart_tenants.domains (domain, tenant_id, token)"
            f" SELECT '{CLAIMED}', id, 'unproved' FROM quart_tenants.tenants WHERE slug = 'acme'"
        )
    file = tmp_path / "acme.tar"
    await backup_tenant(database, ACME, file, settings=settings)
    await restore_tenant(database, file, COPY, settings=settings)
    return read_backup(file)


@pytest.fixture
async def copy(database: Database, backup: Backup) -> Tenant:
    """The tenant that was restored from it."""
    assert backup.slug == ACME
    return await get_tenant(database, COPY)


async def test_backup_says_which_names_lead_to_the_tenant(database: Database, backup: Backup) -> None:
    """Verified domains, with what DNS was to show, and former slugs are in the file; a mere claim is not."""
    shown = {own.domain: own.token for own in await list_domains(database, ACME)}

    assert backup.domains == (OwnDomain(SHOP, shown[SHOP]),)
    assert [former.slug for former in backup.former_slugs] == [FORMER]
    assert backup.former_slugs[0].redirect_until > datetime.now(UTC)


async def test_free_names_come_back_and_a_domain_must_be_proved_again(
    database: Database, settings: Settings, backup: Backup, copy: Tenant
) -> None:
    """A free former slug leads to the restored tenant; a free domain is claimed with its token, not served."""
    until = datetime.now(UTC) + timedelta(days=2)
    moved = replace(backup, domains=(OwnDomain("new.acme.test", "token"),), former_slugs=(FormerSlug("older", until),))

    names = await restore_names(database, moved, copy, settings=settings)

    assert (names.claimed, names.redirected, names.refused) == (["new.acme.test"], ["older"], {})
    (claim,) = await list_domains(database, COPY)
    assert (claim.domain, claim.token, claim.verified) == ("new.acme.test", "token", False)
    assert await fetch(database, GET_FORMER, copy.id) == ["older"]
    # Nobody else can take it meanwhile.
    with pytest.raises(FormerSlugError):
        await rename_tenant(database, ACME, Slug("older"), settings=settings)


async def test_names_of_another_tenant_stay_its_own(
    database: Database, settings: Settings, backup: Backup, copy: Tenant
) -> None:
    """Restored beside the living tenant, a copy takes neither its domain nor the slug that leads to it."""
    names = await restore_names(database, backup, copy, settings=settings)

    assert (names.claimed, names.redirected) == ([], [])
    assert {name: type(error) for name, error in names.refused.items()} == {
        SHOP: DomainTakenError,
        FORMER: FormerSlugError,
    }
    assert await list_domains(database, COPY) == []
    assert await fetch(database, GET_FORMER, copy.id) == []


async def test_names_that_do_not_fit_here_are_refused(
    database: Database, settings: Settings, backup: Backup, copy: Tenant
) -> None:
    """A domain below that of all tenants, and a slug that is reserved, taken or none, are refused one by one."""
    until = datetime.now(UTC) + timedelta(days=2)
    reserved = min(settings.reserved_slugs)
    moved = replace(
        backup,
        domains=(OwnDomain(f"globex.{settings.domain}", "token"), OwnDomain("no domain", "token")),
        former_slugs=tuple(FormerSlug(slug, until) for slug in ("globex", reserved, "Not A Slug", "good")),
    )

    names = await restore_names(database, moved, copy, settings=settings)

    assert (names.claimed, names.redirected) == ([], ["good"])
    assert {name: type(error) for name, error in names.refused.items()} == {
        f"globex.{settings.domain}": InvalidDomainError,
        "no domain": InvalidDomainError,
        "globex": TenantExistsError,
        reserved: InvalidSlugError,
        "Not A Slug": InvalidSlugError,
    }


async def test_redirect_that_has_ended_is_left_out(
    database: Database, settings: Settings, backup: Backup, copy: Tenant
) -> None:
    """A former slug whose time is over leads nowhere, and that is nothing to tell."""
    ended = FormerSlug("older", datetime.now(UTC) - timedelta(seconds=1))

    names = await restore_names(database, replace(backup, domains=(), former_slugs=(ended,)), copy, settings=settings)

    assert (names.redirected, names.refused) == ([], {})
    assert await fetch(database, GET_FORMER, copy.id) == []

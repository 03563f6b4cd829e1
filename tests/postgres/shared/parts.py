"""What tests of shared schemas share: the files of an app, and the app itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant

ACME, GLOBEX, COPY, TWIN = Slug("acme"), Slug("globex"), Slug("copy"), Slug("twin")

SHARED_FILES = {
    "0001_extensions.sql": """
        CREATE EXTENSION citext;
        CREATE EXTENSION pg_trgm SCHEMA "More things";
        CREATE EXTENSION hstore;
    """,
    "0002_plans.sql": """
        CREATE TABLE plans (id integer PRIMARY KEY, name text NOT NULL);
        INSERT INTO plans VALUES (1, 'free'), (2, 'large');
    """,
}
TENANT_FILES = {
    "0001_members.sql": """
        CREATE TABLE members (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            email citext NOT NULL UNIQUE,
            name text NOT NULL DEFAULT '',
            tags hstore NOT NULL DEFAULT '',
            plan_id integer NOT NULL DEFAULT 1 REFERENCES plans (id)
        );
    """,
    "0002_search.sql": "CREATE INDEX members_by_name ON members USING gin (name gin_trgm_ops);",
}


@dataclass(frozen=True)
class App:
    """An app with shared schemas and two tenants.

    Attributes:
        database: A pool of two connections.
        settings: Its settings.
        superuser_url: The URL of the same database for a superuser.
    """

    database: Database
    settings: Settings
    superuser_url: str

    @property
    def shared_files(self) -> Path:
        """The folder of the shared migrations."""
        assert self.settings.shared_migrations_dir is not None
        return self.settings.shared_migrations_dir

    @property
    def tenant_files(self) -> Path:
        """The folder of the tenants' migrations."""
        assert self.settings.migrations_dir is not None
        return self.settings.migrations_dir

    async def get(self, slug: Slug) -> Tenant:
        """Return the tenant at *slug*."""
        return await get_tenant(self.database, slug)


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write *files*, by name, into *folder*."""
    for name, text in files.items():
        (folder / name).write_text(text)

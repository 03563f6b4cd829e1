"""Operate a fleet of tenants: create, migrate, move, back up and drop them. For scripts, jobs and consoles."""

from quart_tenants.domain import Domain, parse_domain
from quart_tenants.postgres.backup_folders.backup_all import BackupReport, backup_all_tenants
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.backup_files import Backup, read_backup
from quart_tenants.postgres.backups.pipes import Pipe, parse_pipe
from quart_tenants.postgres.backups.restore import copy_tenant, restore_tenant
from quart_tenants.postgres.backups.restored_names import RestoredNames, restore_names
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.fleet_plan import FleetPlan, plan_fleet
from quart_tenants.postgres.fleet.migrate_fleet import FleetReport, migrate_fleet
from quart_tenants.postgres.fleet.status import FleetStatus, get_fleet_status
from quart_tenants.postgres.registry.registry_tables import get_tenant, init_registry, list_tenants
from quart_tenants.postgres.shared.shared_migrations import migrate_shared
from quart_tenants.postgres.tenants.domains import CustomDomain, add_domain, list_domains, remove_domain
from quart_tenants.postgres.tenants.lifecycle import (
    change_tenant_settings,
    rename_tenant,
    resume_tenant,
    suspend_tenant,
)
from quart_tenants.postgres.tenants.provisioning import adopt_schemas, create_tenant, create_tenants
from quart_tenants.postgres.tenants.purge import purge_trash
from quart_tenants.postgres.tenants.ready_making import ReadyReport, prepare_tenants
from quart_tenants.postgres.tenants.trash import TrashedTenant, drop_tenant, list_trash, undrop_tenant
from quart_tenants.settings import Settings, read_settings
from quart_tenants.tenant import SchemaName, Slug, parse_schema_name, parse_slug

__all__ = [
    "Backup",
    "BackupReport",
    "CustomDomain",
    "Database",
    "Domain",
    "FleetPlan",
    "FleetReport",
    "FleetStatus",
    "Pipe",
    "ReadyReport",
    "RestoredNames",
    "SchemaName",
    "Settings",
    "Slug",
    "TrashedTenant",
    "add_domain",
    "adopt_schemas",
    "backup_all_tenants",
    "backup_tenant",
    "change_tenant_settings",
    "copy_tenant",
    "create_tenant",
    "create_tenants",
    "drop_tenant",
    "get_fleet_status",
    "get_tenant",
    "init_registry",
    "list_domains",
    "list_tenants",
    "list_trash",
    "migrate_fleet",
    "migrate_shared",
    "parse_domain",
    "parse_pipe",
    "parse_schema_name",
    "parse_slug",
    "plan_fleet",
    "prepare_tenants",
    "purge_trash",
    "read_backup",
    "read_settings",
    "remove_domain",
    "rename_tenant",
    "restore_names",
    "restore_tenant",
    "resume_tenant",
    "suspend_tenant",
    "undrop_tenant",
]

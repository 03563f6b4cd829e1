"""The commands for operators: one click group, for `quart-tenants` and for `quart tenants`."""

import click

from quart_tenants.web.commands.backups import backup_command, restore_command
from quart_tenants.web.commands.create_many import create_many_command
from quart_tenants.web.commands.doctor import doctor_command
from quart_tenants.web.commands.domains import domain_commands
from quart_tenants.web.commands.lifecycle import rename_command, resume_command, settings_command, suspend_command
from quart_tenants.web.commands.lint import check_portable_command, lint_command
from quart_tenants.web.commands.migrate import migrate_command
from quart_tenants.web.commands.nodes import move_command, nodes_command
from quart_tenants.web.commands.provisioning import (
    adopt_command,
    create_command,
    init_command,
    list_command,
    prepare_command,
)
from quart_tenants.web.commands.running import TenantGroup
from quart_tenants.web.commands.serve import serve_command
from quart_tenants.web.commands.sizes import sizes_command
from quart_tenants.web.commands.status import status_command
from quart_tenants.web.commands.top import top_command
from quart_tenants.web.commands.trash import drop_command, purge_command, undrop_command


def tenant_commands(name: str = "tenants") -> click.Group:
    """Return a new group with all commands about tenants, open for more."""
    group = TenantGroup(name, help="Make, migrate, move, drop and restore tenants.")
    for command in (
        init_command,
        create_command,
        create_many_command,
        prepare_command,
        adopt_command,
        list_command,
        status_command,
        top_command,
        sizes_command,
        doctor_command,
        migrate_command,
        lint_command,
        check_portable_command,
        suspend_command,
        resume_command,
        rename_command,
        settings_command,
        drop_command,
        undrop_command,
        purge_command,
        domain_commands,
        backup_command,
        restore_command,
        nodes_command,
        move_command,
        serve_command,
    ):
        group.add_command(command)
    return group

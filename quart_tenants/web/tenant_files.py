"""Give each tenant a folder of its own, which is copied and deleted with the tenant."""

import asyncio
import shutil
from pathlib import Path, PurePosixPath

from quart_tenants.errors import InvalidPathError
from quart_tenants.tenant import Tenant
from quart_tenants.web.context import get_current_tenant
from quart_tenants.web.lifecycle_hooks import LifecycleHooks, TenantEvent

_LONGEST_NAME = 255
"""Bytes, of a file or a folder: what the usual file systems allow."""


class TenantFiles:
    """The folders of all tenants under one root. Made by `QuartTenants.files`.

    A folder has the tenant's number as its name, so a rename changes nothing, and no tenant ever gets the folder of
    another one. A dropped tenant's folder stays until the purge. A copied tenant gets a copy. A tenant that is restored
    from a backup as a new one begins without files, because a backup holds rows only.
    """

    def __init__(self, root: Path, hooks: LifecycleHooks) -> None:
        self._root = root
        hooks.on_copied(self._copy)
        hooks.on_purged(self._delete)

    def get_path(self, name: str, tenant: Tenant | None = None) -> Path:
        """Return the path of a tenant's file, and make the folders above it.

        Args:
            name: Relative, with `/` between the parts, such as `invoices/7.pdf`. It may come from a visitor.
            tenant: Default: the current one.

        Raises:
            InvalidPathError: *name* is absolute, leads out of the folder, also by a link in it, or names no file.
            NoTenantError: No tenant is named and there is no current one.
        """
        folder = self.get_folder(tenant)
        parts = PurePosixPath(name).parts
        is_long = any(len(part.encode("utf-8", "surrogatepass")) > _LONGEST_NAME for part in parts)
        if not parts or is_long or "\0" in name or "\\" in name or ".." in parts or name.startswith("/"):
            raise InvalidPathError(name)
        path = folder.joinpath(*parts)
        try:
            # A link in the folder may lead elsewhere.
            if not path.resolve().is_relative_to(folder.resolve()):
                raise InvalidPathError(name)
            path.parent.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            # Such as a part that is a file.
            raise InvalidPathError(name) from error
        return path

    def get_folder(self, tenant: Tenant | None = None) -> Path:
        """Return the folder of *tenant*, default the current one, which need not exist yet.

        Raises:
            NoTenantError: No tenant is named and there is no current one.
        """
        return self._name_folder((tenant or get_current_tenant()).id)

    def _name_folder(self, tenant_id: int) -> Path:
        return self._root / str(tenant_id)

    async def _copy(self, event: TenantEvent) -> None:
        source = self._name_folder(event.source_id or 0)
        if source.is_dir():
            # Links are copied as links: what they lead to is not the tenant's.
            await asyncio.to_thread(shutil.copytree, source, self._name_folder(event.tenant_id), symlinks=True)

    async def _delete(self, event: TenantEvent) -> None:
        folder = self._name_folder(event.tenant_id)
        if folder.is_dir():
            await asyncio.to_thread(shutil.rmtree, folder)

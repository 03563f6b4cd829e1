"""Tell the app what has happened to a tenant, whether a command did it or the app itself."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from quart_tenants.errors import HookFailedError
from quart_tenants.tenant import Slug, Tenant

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TenantEvent:
    """What has happened to a tenant. It is saved already, and a hook that fails does not undo it.

    Attributes:
        tenant_id: The registry's number, which is never used again.
        slug: The subdomain, after a rename the new one.
        tenant: The tenant as it is now; None after a drop and a purge.
        source_id: After a copy the number of the tenant that was copied.
        former_slug: After a rename the slug of before.

    Example:
        ```python
        @tenants.on_renamed
        async def tell(event: TenantEvent) -> None:
            print(event.tenant_id, event.former_slug, event.slug)
        ```
    """

    tenant_id: int
    slug: Slug
    tenant: Tenant | None = None
    source_id: int | None = None
    former_slug: Slug | None = None


HookT = TypeVar("HookT", bound=Callable[[TenantEvent], object])


class LifecycleHooks:
    """The hooks of one app. Each is a decorator for a function, async or not, that gets a `TenantEvent`.

    Hooks of one kind run in the order in which they were added, after the change is saved. If one raises, the log has
    its traceback, the others run all the same, and a command ends with status 1.
    """

    def __init__(self) -> None:
        self._hooks: dict[str, list[Callable[[TenantEvent], object]]] = {}

    def on_created(self, hook: HookT) -> HookT:
        """Call *hook* when a tenant was created or adopted."""
        return self._add("created", hook)

    def on_copied(self, hook: HookT) -> HookT:
        """Call *hook* when a tenant was made as a copy of another."""
        return self._add("copied", hook)

    def on_restored(self, hook: HookT) -> HookT:
        """Call *hook* when a tenant was restored from a backup, as a new one or in place of a living one."""
        return self._add("restored", hook)

    def on_renamed(self, hook: HookT) -> HookT:
        """Call *hook* when a tenant got another subdomain."""
        return self._add("renamed", hook)

    def on_dropped(self, hook: HookT) -> HookT:
        """Call *hook* when a tenant was put into the trash, from which it may come back."""
        return self._add("dropped", hook)

    def on_purged(self, hook: HookT) -> HookT:
        """Call *hook* when a tenant was deleted for good."""
        return self._add("purged", hook)

    def has_hooks(self, kind: str) -> bool:
        """Return whether any hook waits for *kind*, such as `created`."""
        return bool(self._hooks.get(kind))

    async def run_hooks(self, kind: str, event: TenantEvent) -> None:
        """Call all hooks for *kind*, one after the other.

        Raises:
            HookFailedError: Some hooks raised an exception. The others ran.
        """
        failed = []
        for hook in self._hooks.get(kind, ()):
            try:
                called = hook(event)
                if inspect.isawaitable(called):
                    await called
            except Exception:
                name = getattr(hook, "__qualname__", repr(hook))
                logger.exception("the hook %s failed after tenant %s was %s", name, event.slug, kind)
                failed.append(name)
        if failed:
            raise HookFailedError(event.slug, kind, failed)

    def _add(self, kind: str, hook: HookT) -> HookT:
        self._hooks.setdefault(kind, []).append(hook)
        return hook

"""Do the same for every tenant: for nightly jobs, and for the pages of operators."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from quart_tenants.errors import OtherTenantError
from quart_tenants.tenant import Tenant
from quart_tenants.web.context import find_current_tenant, working_for
from quart_tenants.web.state import get_state

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TenantResult(Generic[T]):
    """What came of one tenant.

    Attributes:
        tenant: The tenant.
        value: What the work returned; None if it raised.
        error: What it raised, or None.
    """

    tenant: Tenant
    value: T | None = None
    error: Exception | None = None


async def for_each_tenant(work: Callable[[Tenant], Awaitable[T]], *, jobs: int = 4) -> list[TenantResult[T]]:
    """Call *work* for each tenant that is served, several at a time, and return what came of each, in order of slug.

    Suspended tenants, and those whose tables are too old for the app, are left out. Inside *work* the tenant is
    `current_tenant`, and `tenant_connection()` lends its connection. An exception of one tenant does not stop the
    others. A cancellation stops all.

    Args:
        work: An async function.
        jobs: How many tenants are worked for at the same time. Each may need a connection of the pool.

    Raises:
        OtherTenantError: This is a request at a tenant's host, which must not reach the other tenants.
        ValueError: *jobs* is less than 1.
        NoTenantError: There is no current app, or it has no tenants.
        RegistryStaleError: This worker cannot know which tenants there are.

    Example:
        ```python
        async def count_orders(tenant: Tenant) -> int:
            async with tenant_connection() as connection:
                return int(await connection.fetchval("SELECT count(*) FROM orders"))

        async with app.app_context(), tenants.running():
            results = await for_each_tenant(count_orders, jobs=2)
        failed = [result for result in results if result.error is not None]
        ```
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}: give 1 or more")
    current = find_current_tenant()
    if current is not None:
        raise OtherTenantError(f"a request or job of tenant {current.slug!r} asked for all tenants")
    state = get_state()
    await state.catch_up()
    tenants = state.registry.list_served()
    results: dict[int, TenantResult[T]] = {}
    left = iter(tenants)

    async def work_for_the_rest() -> None:
        # All jobs share one iterator, and each takes the next tenant when it is free.
        for tenant in left:
            with working_for(tenant):
                try:
                    results[tenant.id] = TenantResult(tenant, await work(tenant))
                except Exception as error:  # noqa: BLE001  (the caller gets it)
                    results[tenant.id] = TenantResult(tenant, error=error)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(jobs, len(tenants))):
            group.create_task(work_for_the_rest())
    return [results[tenant.id] for tenant in tenants]

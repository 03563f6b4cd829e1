"""Let no tenant have more than its share of the pool."""

from quart_tenants.errors import PoolExhaustedError, TenantOverShareError
from quart_tenants.postgres.pool.waiters import Waiters
from quart_tenants.tenant import Tenant


class _Share:
    """What one tenant has at the moment, and who waits for it."""

    __slots__ = ("used", "waiters")

    def __init__(self) -> None:
        self.used = 0
        self.waiters: Waiters[None] = Waiters()


class Shares:
    """Counts the blocks of each tenant: *size* at a time, *queue* more may wait. Forgets a tenant that has none."""

    __slots__ = ("_by_tenant", "_queue", "_size")

    def __init__(self, size: int, queue: int) -> None:
        self._size = size
        self._queue = queue
        self._by_tenant: dict[int, _Share] = {}

    def __len__(self) -> int:
        """Return how many tenants have a block, or wait for one."""
        return len(self._by_tenant)

    async def take(self, tenant: Tenant, deadline: float) -> None:
        """Return when *tenant* may have one more block. What is taken must be given back, once.

        Args:
            tenant: Whose block.
            deadline: On the event loop's clock.

        Raises:
            TenantOverShareError: Too many of its blocks are waiting.
            PoolExhaustedError: It had to wait until *deadline*.
        """
        share = self._by_tenant.get(tenant.id)
        if share is None:
            share = self._by_tenant[tenant.id] = _Share()
        if share.used < self._size:
            share.used += 1
            return
        if len(share.waiters) >= self._queue:
            raise TenantOverShareError(
                f"tenant {tenant.slug!r} has all {self._size} connections of its share, and {self._queue} more blocks "
                "wait for one; TENANTS_TENANT_POOL_SHARE and TENANTS_TENANT_POOL_QUEUE say how many may"
            )
        try:
            await share.waiters.wait(deadline, lambda _: self.give_back(tenant))
        except TimeoutError as error:
            raise PoolExhaustedError(
                f"the {self._size} connections of tenant {tenant.slug!r}'s share stayed in use for "
                "TENANTS_ACQUIRE_TIMEOUT; a block inside a block needs two at a time"
            ) from error

    def give_back(self, tenant: Tenant) -> None:
        """End one block of *tenant*: the first that waits may begin."""
        share = self._by_tenant[tenant.id]
        if share.waiters.hand_over(None):
            return
        share.used -= 1
        if share.used == 0:
            del self._by_tenant[tenant.id]

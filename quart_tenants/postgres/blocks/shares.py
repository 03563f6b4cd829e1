"""Let no tenant have more than its share of the pool, and those whose blocks time out much less."""

import logging

from quart_tenants.errors import DatabaseTimeoutError, PoolExhaustedError, TenantOverShareError
from quart_tenants.postgres.pool.waiters import Waiters
from quart_tenants.tenant import Tenant

_logger = logging.getLogger(__name__)


class _Share:
    """What one tenant has at the moment, who waits for it, and how many of its blocks timed out in a row."""

    __slots__ = ("timeouts", "used", "waiters")

    def __init__(self) -> None:
        self.used = 0
        self.timeouts = 0
        # Handed over is whether the block may begin.
        self.waiters: Waiters[bool] = Waiters()


class _Silence:
    """How many blocks of a node's tenants timed out one after the other, and of which tenants."""

    __slots__ = ("tenants", "timeouts")

    def __init__(self) -> None:
        self.timeouts = 0
        self.tenants: set[int] = set()


class Shares:
    """Counts the blocks of each tenant: *size* at a time, *queue* more may wait. Forgets a tenant that has none.

    A tenant is stuck when *stuck_after* of its blocks have timed out one after the other: its table is locked, or the
    machine on which it lies hangs. All stuck tenants together may have *apart* blocks at a time, and nobody waits for
    one. The first block of a tenant that gets an answer ends this.

    Where it is known on which node of a cluster tenants lie, all tenants of a node are stuck when so many blocks of at
    least two of them have timed out one after the other. The first answer to any of them ends that.

    Attributes:
        nodes: On which node each tenant lies, by their numbers; empty where there is no cluster.
    """

    __slots__ = ("_apart", "_apart_used", "_by_tenant", "_queue", "_silences", "_size", "_stuck_after", "nodes")

    def __init__(self, size: int, queue: int, *, apart: int = 1, stuck_after: int = 0) -> None:
        self._size = size
        self._queue = queue
        self._apart = apart
        self._apart_used = 0
        # 0: no tenant is ever stuck.
        self._stuck_after = stuck_after or float("inf")
        self._by_tenant: dict[int, _Share] = {}
        self.nodes: dict[int, int] = {}
        # Of nodes that gave no answer last.
        self._silences: dict[int, _Silence] = {}

    def __len__(self) -> int:
        """Return how many tenants have a block, wait for one, or had a time-out last."""
        return len(self._by_tenant)

    def count_stuck(self) -> int:
        """Return how many tenants are stuck now."""
        return sum(self._is_stuck(tenant, share) for tenant, share in self._by_tenant.items())

    async def take(self, tenant: Tenant, deadline: float) -> bool:
        """Return when *tenant* may have one more block. What is taken must be given back, once.

        Args:
            tenant: Whose block.
            deadline: On the event loop's clock.

        Returns:
            Whether the tenant is stuck, so that this block should end soon.

        Raises:
            TenantOverShareError: Too many of its blocks are waiting.
            PoolExhaustedError: It had to wait until *deadline*.
            DatabaseTimeoutError: It is stuck, and the stuck tenants have all that they may have.
        """
        share = self._by_tenant.get(tenant.id)
        if share is None:
            share = self._by_tenant[tenant.id] = _Share()
        if self._is_stuck(tenant.id, share):
            if self._apart_used >= self._apart:
                raise _explain_stuck(tenant)
            self._apart_used += 1
            share.used += 1
            return True
        if share.used < self._size:
            share.used += 1
            return False
        if len(share.waiters) >= self._queue:
            raise TenantOverShareError(
                f"tenant {tenant.slug!r} has all {self._size} connections of its share, and {self._queue} more blocks "
                "wait for one; TENANTS_TENANT_POOL_SHARE and TENANTS_TENANT_POOL_QUEUE say how many may"
            )

        def take_back(may_begin: bool) -> None:
            if may_begin:
                self.give_back(tenant)

        try:
            may_begin = await share.waiters.wait(deadline, take_back)
        except TimeoutError as error:
            raise PoolExhaustedError(
                f"the {self._size} connections of tenant {tenant.slug!r}'s share stayed in use for "
                "TENANTS_ACQUIRE_TIMEOUT; a block inside a block needs two at a time"
            ) from error
        if not may_begin:
            raise _explain_stuck(tenant)
        return False

    def give_back(self, tenant: Tenant, *, timed_out: bool | None = None, apart: bool = False) -> None:
        """End one block of *tenant*: the first that waits may begin.

        Args:
            tenant: Whose block.
            timed_out: Whether the server gave no answer in time; None if that is not known.
            apart: What `take` has returned.
        """
        share = self._by_tenant[tenant.id]
        self._apart_used -= apart
        # An answer ends what time-outs have begun, and is no news where there were none.
        if timed_out or (timed_out is False and (share.timeouts or self._silences)):
            was_stuck = share.timeouts >= self._stuck_after
            share.timeouts = share.timeouts + 1 if timed_out else 0
            if (share.timeouts >= self._stuck_after) != was_stuck:
                _tell(f"tenant {tenant.slug}", stuck=not was_stuck)
            if (node := self.nodes.get(tenant.id)) is not None:
                self._note_node(node, tenant.id, timed_out=timed_out)
        if self._is_stuck(tenant.id, share):
            while share.waiters.hand_over(False):
                pass
        elif share.waiters.hand_over(True):
            return
        share.used -= 1
        if share.used == 0 and share.timeouts == 0:
            del self._by_tenant[tenant.id]

    def _note_node(self, node: int, tenant: int, *, timed_out: bool) -> None:
        """Note that *node* gave an answer to a block of *tenant*, or none in time."""
        was_stuck = self._is_silent(node)
        if timed_out:
            silence = self._silences.setdefault(node, _Silence())
            silence.timeouts += 1
            silence.tenants.add(tenant)
        else:
            self._silences.pop(node, None)
        if (stuck := self._is_silent(node)) == was_stuck:
            return
        _tell(f"node {node} with all its tenants", stuck=stuck)
        for other, share in self._by_tenant.items():
            while stuck and self.nodes.get(other) == node and share.waiters.hand_over(False):
                pass

    def _is_silent(self, node: int | None) -> bool:
        silence = None if node is None else self._silences.get(node)
        # One tenant alone may have a locked table.
        return silence is not None and silence.timeouts >= self._stuck_after and len(silence.tenants) > 1

    def _is_stuck(self, tenant: int, share: _Share) -> bool:
        return share.timeouts >= self._stuck_after or (bool(self._silences) and self._is_silent(self.nodes.get(tenant)))


def _explain_stuck(tenant: Tenant) -> DatabaseTimeoutError:
    return DatabaseTimeoutError(
        f"the last blocks of tenant {tenant.slug!r}, or of its node, timed out one after the other, so it may only try "
        "now and then until the database answers; TENANTS_STUCK_AFTER says after how many"
    )


def _tell(who: str, *, stuck: bool) -> None:
    if stuck:
        _logger.warning("%s is stuck: blocks time out there, and may only try now and then", who)
    else:
        _logger.warning("%s is not stuck any more", who)

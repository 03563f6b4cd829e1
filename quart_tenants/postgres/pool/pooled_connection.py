"""What the pool knows of one of its connections."""

from dataclasses import dataclass, field

from quart_tenants.postgres.driver.opening import BlockConnection


@dataclass(slots=True, eq=False)
class PooledConnection:
    """A connection in a slot of the pool.

    Attributes:
        driver: The connection itself.
        slot: Its number.
        epoch: How often the pool had replaced all its connections when this one was opened.
        weigh_at: After how many tenants the server process is weighed next.
        used_at: When the last block ended, or the connection was ready for the first, by the event loop's clock.
        tenants: The tenants that were here, by number.
    """

    driver: BlockConnection
    slot: int
    epoch: int
    weigh_at: int
    used_at: float
    tenants: set[int] = field(default_factory=set)

"""How long the connections of one pool wait for what. Tests give other values; nobody else needs to."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Times in seconds.

    Attributes:
        fresh: A connection that answered so lately is trusted to be alive: its block begins with the first statement.
        known: A tenant has its schema for so long after the registry has said so. A name rests for longer than a worker
            may remember whose it was, by twice this time.
        silence: After so long without an answer to BEGIN, the pool asks the server whether the connection is dead.
        cleanup: A block that is left waits so long for its rollback and reset. Then its connection is closed instead.
        cancel: A block that goes on after a statement's time-out waits so long for the server to cancel that statement.
        tidy_every: How often the pool looks after idle connections. One that was idle for so long is reset.
        give_up_after: A connection that was idle for so long goes back to asyncpg's pool, which may close it.
        fuse: A block of a tenant whose last blocks timed out may take so long.
        away: While nobody answers where the database was, connections are asked for again for so long. From then on a
            block fails at once, until somebody answers.
        full: A server that had no place for another connection is asked for one again after so long.
    """

    fresh: float = 0.5
    known: float = 0.5
    silence: float = 1.0
    cleanup: float = 0.4
    cancel: float = 3.0
    tidy_every: float = 1.0
    give_up_after: float = 300.0
    fuse: float = 2.0
    away: float = 2.0
    full: float = 1.0

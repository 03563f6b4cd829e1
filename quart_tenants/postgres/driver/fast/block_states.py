"""The states of a connection's block, and which one may follow which. Pure: no I/O. Drawn in docs/architecture.md."""

import enum


class BlockState(enum.Enum):
    """What a connection's block is at.

    Attributes:
        following: The states that may follow.
    """

    following: "tuple[BlockState, ...]"

    IDLE = "idle"
    """No block: the pool has the connection."""
    PLANNED = "planned"
    """A block has the connection, and the server has no open transaction of it."""
    READING = "reading"
    """A plain read is under way together with its BEGIN and COMMIT, or a question about the tenant."""
    INTERRUPTED = "interrupted"
    """It was cut off, or its kept statement did not fit. Nobody knows whether its transaction is open."""
    BEGINNING = "beginning"
    """BEGIN is under way alone."""
    OPEN = "open"
    """The server has an open transaction."""
    ENDING = "ending"
    """COMMIT or ROLLBACK is under way, with the reset."""


TRANSITIONS = {
    BlockState.IDLE: (BlockState.PLANNED,),
    BlockState.PLANNED: (BlockState.READING, BlockState.BEGINNING, BlockState.IDLE),
    BlockState.READING: (BlockState.PLANNED, BlockState.OPEN, BlockState.INTERRUPTED, BlockState.ENDING),
    BlockState.INTERRUPTED: (BlockState.READING, BlockState.BEGINNING, BlockState.ENDING),
    BlockState.BEGINNING: (BlockState.OPEN, BlockState.ENDING),
    BlockState.OPEN: (BlockState.ENDING,),
    BlockState.ENDING: (BlockState.IDLE, BlockState.ENDING),
}
"""A connection is closed where none of these fits. From ENDING to ENDING goes a rollback after a refused COMMIT."""

for _state, _following in TRANSITIONS.items():
    # A look-up by an enum's member costs ten times as much, and there are four in each block.
    _state.following = _following


class BlockStateError(Exception):
    """A bug: a connection was asked for what its block's state does not allow."""


class BlockStateMachine:
    """The state of one connection's block."""

    __slots__ = ("current",)

    def __init__(self) -> None:
        self.current = BlockState.IDLE

    def move(self, state: BlockState) -> None:
        """Go on to *state*.

        Raises:
            BlockStateError: *state* does not follow the current one.
        """
        if state not in self.current.following:
            raise BlockStateError(f"a block that is {self.current.value} cannot become {state.value}")
        self.current = state

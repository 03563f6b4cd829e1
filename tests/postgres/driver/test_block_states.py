"""The states of a connection's block: the drawing says what the table says, and nothing else happens."""

import re
from itertools import product
from pathlib import Path

import pytest

from quart_tenants.postgres.driver.fast.block_states import TRANSITIONS, BlockState, BlockStateError, BlockStateMachine

ARCHITECTURE = Path(__file__).parents[3] / "docs" / "architecture.md"


def test_drawing_agrees_with_the_table() -> None:
    """Each step that the code allows is drawn, and each that is drawn is allowed."""
    drawn = set(re.findall(r"^(\w+) +--> (\w+)", ARCHITECTURE.read_text(), re.MULTILINE))

    assert drawn == {(state.value, following.value) for state in TRANSITIONS for following in TRANSITIONS[state]}


@pytest.mark.parametrize(("state", "following"), list(product(BlockState, BlockState)))
def test_step_that_is_not_in_the_table_is_a_bug(state: BlockState, following: BlockState) -> None:
    """A state is followed by those that the table names; any other is an error, and the state stays."""
    machine = BlockStateMachine()
    machine.current = state

    if following in TRANSITIONS[state]:
        machine.move(following)
        assert machine.current is following
    else:
        with pytest.raises(BlockStateError):
            machine.move(following)
        assert machine.current is state

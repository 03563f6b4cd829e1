"""Slots: a tenant finds its own connection again, and nobody's is lost."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_tenants.postgres.pool.slots import Slots

FAR = float("inf")
STEPS = ("take", "give", "vacate", "wait", "cancel")


async def open_all(slots: Slots[str]) -> None:
    """Put a connection at each slot, named after it."""
    for number in range(slots.size):
        assert slots.take(number) == (number, None)
    for number in range(slots.size):
        slots.give_back(number, f"connection {number}")


async def test_idle_preferred_slot_is_taken_first() -> None:
    """The same number gets the same connection while nobody else has it."""
    slots: Slots[str] = Slots(3)
    await open_all(slots)

    for number in (7, 7, 4, 1):
        assert slots.take(number) == (1, "connection 1")
        slots.give_back(1, "connection 1")


async def test_busy_tenant_gets_the_next_slots_in_order() -> None:
    """Where the preferred slot is taken the next one is, the same one each time, round the end."""
    slots: Slots[str] = Slots(3)
    await open_all(slots)

    assert [slots.take(2) for _ in range(4)] == [(2, "connection 2"), (0, "connection 0"), (1, "connection 1"), None]


async def test_connection_is_opened_in_the_preferred_slot_before_a_strange_one_is_used() -> None:
    """A slot without a connection is as good as an idle one: the tenant's connections stay few."""
    slots: Slots[str] = Slots(2)
    assert slots.take(0) == (0, None)
    slots.give_back(0, "connection 0")

    assert slots.take(1) == (1, None)
    assert len(slots) == 2


async def test_waiters_are_served_in_order() -> None:
    """First come, first served, also where a slot has no connection any more."""
    slots: Slots[str] = Slots(1)
    assert slots.take(0) == (0, None)
    waiters = [asyncio.create_task(slots.wait(FAR)) for _ in range(3)]
    await asyncio.sleep(0)

    slots.give_back(0, "connection")
    assert await waiters[0] == (0, "connection")
    slots.vacate(0)
    assert await waiters[1] == (0, None)
    assert not waiters[2].done()
    slots.give_back(0, "other")
    assert await waiters[2] == (0, "other")


async def test_waiter_in_vain_is_told_and_takes_nothing() -> None:
    """Whoever waited too long raises TimeoutError, and the next one gets the slot."""
    slots: Slots[str] = Slots(1)
    slots.take(0)

    with pytest.raises(TimeoutError):
        await slots.wait(asyncio.get_running_loop().time() + 0.01)

    slots.give_back(0, "connection")
    assert slots.take(0) == (0, "connection")


@pytest.mark.parametrize("connection", ["connection", None])
async def test_waiter_cancelled_in_the_moment_of_its_turn_passes_the_slot_on(connection: str | None) -> None:
    """A slot that was handed to a waiter which was cancelled meanwhile goes to the next one."""
    slots: Slots[str] = Slots(1)
    slots.take(0)
    first, second = (asyncio.create_task(slots.wait(FAR)) for _ in range(2))
    await asyncio.sleep(0)

    if connection is None:
        slots.vacate(0)
    else:
        slots.give_back(0, connection)
    first.cancel()

    assert await second == (0, connection)
    assert first.cancelled()


async def test_idle_connections_that_are_looked_after_keep_their_slots() -> None:
    """What is taken aside is neither lent nor opened twice until it is given back."""
    slots: Slots[str] = Slots(2)
    await open_all(slots)

    assert slots.take_idle(lambda name: name.endswith("1")) == ["connection 1"]
    assert slots.take(1) == (0, "connection 0")
    assert slots.take(1) is None
    slots.give_back(1, "connection 1")
    assert slots.take(1) == (1, "connection 1")


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9)), max_size=60))
async def test_no_slot_is_lost_or_lent_twice(steps: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order: each slot has one user at most, and all come back."""
    slots: Slots[str] = Slots(3)
    lent: list[int] = []
    waiting: list[asyncio.Task[tuple[int, str | None]]] = []
    for step, number in steps:
        if step == "take" and (taken := slots.take(number)) is not None:
            lent.append(taken[0])
        elif step == "give" and lent:
            slot = lent.pop(number % len(lent))
            slots.give_back(slot, f"connection {slot}")
        elif step == "vacate" and lent:
            slots.vacate(lent.pop(number % len(lent)))
        elif step == "wait" and len(slots) == slots.size and len(lent) == slots.size:
            waiting.append(asyncio.create_task(slots.wait(FAR)))
            await asyncio.sleep(0)
        elif step == "cancel" and waiting:
            waiting[number % len(waiting)].cancel()
        for task in [task for task in waiting if task.done()]:
            waiting.remove(task)
            if not task.cancelled():
                lent.append(task.result()[0])
        assert max(Counter(lent).values(), default=0) <= 1

    for task in waiting:
        task.cancel()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    lent += [outcome[0] for outcome in outcomes if isinstance(outcome, tuple)]
    for slot in lent:
        slots.vacate(slot)
    found = [slots.take(0) for _ in range(4)]
    assert sorted(slot for slot, _ in filter(None, found)) == [0, 1, 2]

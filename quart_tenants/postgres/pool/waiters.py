"""A queue for something that others have: first come, first served."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Waiters(Generic[T]):
    """A queue of tasks that wait for the same kind of thing."""

    __slots__ = ("_futures",)

    def __init__(self) -> None:
        self._futures: deque[asyncio.Future[T]] = deque()

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._futures)

    async def wait(self, deadline: float, take_back: Callable[[T], None]) -> T:
        """Return what is handed over to this task.

        Args:
            deadline: On the event loop's clock.
            take_back: Called with what was handed over in the moment in which the task was cancelled.

        Raises:
            TimeoutError: Nothing was handed over until *deadline*.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._futures.append(future)
        # A third of what asyncio.timeout_at() costs, which is a part of every block on a busy worker.
        timer = loop.call_at(deadline, _give_up, future)
        try:
            return await future
        except BaseException:
            if future.done() and not future.cancelled() and future.exception() is None:
                take_back(future.result())
            else:
                # It is gone already if somebody tried to hand something over.
                with contextlib.suppress(ValueError):
                    self._futures.remove(future)
            raise
        finally:
            timer.cancel()

    def hand_over(self, thing: T) -> bool:
        """Give *thing* to whoever has waited longest; return whether anybody waits."""
        while self._futures:
            future = self._futures.popleft()
            # A future that was cancelled waits no more, though its task may not know yet.
            if not future.done():
                future.set_result(thing)
                return True
        return False


def _give_up(future: "asyncio.Future[T]") -> None:
    if not future.done():
        future.set_exception(TimeoutError())

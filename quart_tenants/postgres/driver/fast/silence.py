"""Ask whether a connection is alive when its answer takes long."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class SilenceWatch:
    """Calls *ask* if nothing has ended the watch after *seconds* of waiting.

    The timer is armed anew only after it went off: a timer for each statement would be a tenth of a block's cost.
    """

    __slots__ = ("_ask", "_loop", "_seconds", "_since", "_task", "_timer")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seconds: float, ask: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._ask = ask
        self._timer: asyncio.TimerHandle | None = None
        # Since when an answer is waited for; None while none is.
        self._since: float | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to wait for an answer."""
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def stop(self) -> None:
        """End the watch: the answer is here, or nobody waits for it any more."""
        self._since = None
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _look(self) -> None:
        self._timer = None
        if self._since is None:
            return
        rest = self._since + self._seconds - self._loop.time()
        if rest > 0:
            self._timer = self._loop.call_later(rest, self._look)
        elif self._task is None:
            self._task = self._loop.create_task(self._ask())

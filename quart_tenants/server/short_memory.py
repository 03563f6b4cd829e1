"""End a worker whose event loop gets no memory any more, so that another one takes its place."""

import asyncio
import gc
import logging
import mmap
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

_RESERVE = 16 << 20
"""Bytes of addresses that a process keeps for when it gets no other ones. No memory lies behind them until then."""


def watch_memory(end: Callable[[], object] | None) -> None:
    """Let the running event loop call *end* when a connection of it gets no memory.

    A view that gets none is answered 500, and its memory is free again. But where the event loop itself gets none, it
    drops each new connection, too, and nothing else would end that.

    Args:
        end: Called in the event loop, perhaps several times; None if nobody would replace this process.
    """
    loop = asyncio.get_running_loop()
    reserve = mmap.mmap(-1, _RESERVE, flags=mmap.MAP_PRIVATE)
    before = loop.get_exception_handler()

    def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), MemoryError):
            # Whoever comes before another worker is there is served with it. A second call of close() does nothing.
            reserve.close()
            # What took the memory may be garbage by now, and the collector comes seldom here.
            gc.collect()
            if end is not None:
                log.error("this worker gets no memory; it ends, and another one takes its place")
                end()
        if before is None:
            loop.default_exception_handler(context)
        else:
            before(loop, context)

    loop.set_exception_handler(handle)

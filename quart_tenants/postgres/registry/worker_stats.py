"""Put the figures of one worker together."""

import os

from quart_tenants.measures.counts import Measures
from quart_tenants.measures.stats import Stats
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry import Registry

# An answer has an end, whatever happens.
_LISTED_BLOCKS = 50


def show_stats(measures: Measures, database: Database, registry: Registry) -> Stats:
    """Return what *measures*, *database* and *registry* tell now. Costs no query."""
    tenants, others = measures.tenants.show()
    return Stats(
        pid=os.getpid(),
        uptime=measures.get_uptime(),
        requests=measures.show_requests(),
        pool=database.show_pool(),
        blocks=measures.show_blocks(),
        registry=registry.show(),
        sessions=measures.show_sessions(),
        logins=measures.show_logins(),
        tenants=tenants,
        other_tenants=others,
        open_blocks=tuple(measures.list_open_blocks()[:_LISTED_BLOCKS]),
        figures=measures.collect_figures(),
    )

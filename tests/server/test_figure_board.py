"""The memory in which workers leave their figures: its sums never go down, whoever dies and whoever is named."""

import asyncio
import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quart_tenants.measures.counts import STATUS_CLASSES, Measures
from quart_tenants.measures.metric_families import write_metrics
from quart_tenants.measures.stats import TENANT_FIGURES, Stats, TenantStats
from quart_tenants.measures.tenant_table import TenantTable
from quart_tenants.server import figure_board, metrics_port
from quart_tenants.server.figure_board import FigureBoard, Names
from quart_tenants.server.metrics_port import begin_leaving, leave_figures
from tests.measures.test_metric_families import make_stats
from tests.measures.test_tenant_table import Clock, make_tenant

WORKERS = 3
Counters = dict[tuple[str, str, str], float]


class Fleet:
    """Some workers without a database, each of which counts and leaves what it has counted."""

    def __init__(self, named: int) -> None:
        self.clock = Clock()
        self.board = FigureBoard(WORKERS)
        self.measures = [Measures(named_tenants=named) for _ in range(WORKERS)]
        self.named = named
        self.figures = {"orders_total": 3.0, "mails_waiting": 2.0}
        self.leave = [self.start(number) for number in range(WORKERS)]

    def start(self, number: int) -> Callable[[], None]:
        """Start a worker at its place, where another one may have been; return what leaves its figures."""
        self.measures[number] = measures = Measures(named_tenants=self.named)
        measures.tenants = TenantTable(self.named, self.clock)
        return begin_leaving(self.board, number, measures, lambda: self.get_stats(measures), self.clock)

    def get_stats(self, measures: Measures) -> Stats:
        """Return the figures of a worker."""
        return replace(make_stats(measures), figures=dict(self.figures))

    def serve(self, number: int, slug: str) -> None:
        """Let a worker answer a request of a tenant."""
        measures = self.measures[number]
        counts = measures.tenants.get(make_tenant(1, slug))
        counts.requests += 1
        counts.block_seconds += 0.25
        measures.answers[STATUS_CLASSES.index("2xx")] += 1
        measures.until_answer.add(0.01)

    def scrape(self) -> Counters:
        """Return all numbers that only grow, by name, tenant and another label."""
        text, _ = write_metrics(self.board.read(), "")
        return {
            (sample.name, sample.labels.get("tenant", ""), str(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text.decode())
            if family.type in ("counter", "histogram")
            for sample in family.samples
        }


def play(fleet: Fleet) -> tuple[int, int, Counter[str]]:
    """Let workers serve, be replaced and tell in any order.

    Return how many numbers have gone down between two looks, how often other tenants were named, and what was served.
    """
    chosen = random.Random(7)  # noqa: S311
    served: Counter[str] = Counter()
    before: Counters = {}
    fallen = changes = 0
    for step in range(160):
        for _ in range(8):
            # Every tenant has its time, and is forgotten after it.
            slug = f"t{int(chosen.gauss(step / 4, 3)) % 20}"
            fleet.serve(chosen.randrange(WORKERS), slug)
            served[slug] += 1
        number = chosen.randrange(WORKERS)
        fleet.leave[number]()
        if step % 40 == 39:
            fleet.leave[number] = fleet.start(number)
        fleet.clock.now += 2
        now = fleet.scrape()
        fallen += sum(now[key] < before[key] for key in now.keys() & before.keys())
        changes += {tenant for _, tenant, _ in now} != {tenant for _, tenant, _ in before}
        before = now
    for leave in fleet.leave:
        leave()
    return fallen, changes, served


def test_sums_never_go_down() -> None:
    """Whoever is replaced, and whoever is named instead of whom, no number is lower than before, and none is lost."""
    fleet = Fleet(5)

    fallen, changes, served = play(fleet)

    told = fleet.scrape()
    assert fallen == 0
    assert changes > 20
    assert sum(value for (name, *_), value in told.items() if name == "quart_tenants_requests_total") == served.total()
    assert told["quart_tenants_answer_delay_seconds_count", "", "[]"] == served.total()


@pytest.mark.parametrize("naive", ["forgets the dead", "names half a sum"])
def test_naive_sum_goes_down(naive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a sum of those that live, and one that shows a name which some workers have given up, fall."""
    if naive == "forgets the dead":
        begin = FigureBoard.begin
        monkeypatch.setattr(FigureBoard, "begin", lambda board, number: begin(board, number) and None)
    else:
        read = FigureBoard._read
        every = {f"t{number}" for number in range(20)}
        monkeypatch.setattr(FigureBoard, "_read", lambda board, number, _: read(board, number, every))

    fallen, _, _ = play(Fleet(5))

    assert fallen > 0


@pytest.mark.parametrize("naive", [False, True])
def test_worker_that_dies_again_and_again_names_the_busiest(naive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one goes on with the time of the last election. Negative control: it begins anew, and never elects."""
    if naive:
        monkeypatch.setattr(metrics_port, "Names", lambda slugs, _: Names(slugs))
    fleet = Fleet(1)
    fleet.serve(0, "before")
    fleet.leave[0]()

    for _ in range(6):
        for _ in range(20):
            fleet.serve(1, "now")
        fleet.leave[1]()
        fleet.leave[0] = fleet.start(0)
        fleet.clock.now += 3
        fleet.leave[0]()

    assert fleet.board.read_names().slugs == (["before"] if naive else ["now"])


def write_and_die(board: FigureBoard, moment: str) -> None:
    """Begin to write something else as the figures of the first worker, and end in the middle of it."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises((ArithmeticError, struct.error)):
        if moment == "figures":
            patch.setattr(zlib, "crc32", lambda _: 1 // 0)
        else:
            patch.setattr(time, "monotonic", lambda: "no number")
        board._put(0, b"x" * 100)


@pytest.mark.parametrize("moment", ["figures", "head"])
def test_worker_that_is_killed_while_it_writes_loses_nothing(moment: str) -> None:
    """What it had written before is there: the new figures are beside it until they are whole."""
    fleet = Fleet(5)
    fleet.serve(0, "acme")
    fleet.leave[0]()
    whole = fleet.scrape()
    fleet.serve(0, "acme")

    write_and_die(fleet.board, moment)

    assert fleet.scrape() == whole
    assert all(worker.is_up for worker in fleet.board.read()[:1])


def test_head_that_is_written_field_by_field_loses_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: `pack_into` fills the place with zeros first, which look like those of a place that is new."""
    fleet = Fleet(5)
    fleet.serve(0, "acme")
    fleet.leave[0]()
    head = figure_board._HEAD
    monkeypatch.setattr(
        FigureBoard,
        "_write_head",
        lambda board, number, *fields: head.pack_into(board._memory, number * figure_board._PLACE, *fields),
    )

    write_and_die(fleet.board, "head")

    assert fleet.board.read()[0].stats is None


def test_sum_of_an_apps_own_stays_while_a_worker_cannot_tell_it() -> None:
    """A function that raises once in one worker lowers no sum, which would look like a peak as soon as it is back."""
    fleet = Fleet(5)
    for leave in fleet.leave:
        leave()

    fleet.figures = {}
    fleet.leave[1]()

    told = fleet.scrape()
    assert told["quart_tenants_app_orders_total", "", "[]"] == WORKERS * 3
    worker = fleet.board.read()[1]
    assert worker.stats is not None
    assert worker.stats.figures == {"orders_total": 3.0}


async def test_worker_that_ends_leaves_what_it_did_last() -> None:
    """What a worker did since it left its figures is in the sums, too, if it ends and is not killed."""
    fleet = Fleet(5)
    measures = fleet.measures[0]
    leaving = asyncio.create_task(leave_figures(fleet.board, 0, measures, lambda: fleet.get_stats(measures)))
    await asyncio.sleep(0)
    before = fleet.scrape()
    fleet.serve(0, "acme")

    leaving.cancel()
    await asyncio.wait([leaving])

    count = "quart_tenants_answer_delay_seconds_count", "", "[]"
    assert (before[count], fleet.scrape()[count]) == (0, 1)
    assert leaving.cancelled()


def test_largest_figures_have_room() -> None:
    """With as many names as the settings allow, each as long as it may be, a worker can tell its figures."""
    most = 1000
    slugs = [f"{number:063}" for number in range(2 * most)]
    stats = make_stats(Measures())
    counted: dict[str, Any] = dict.fromkeys(TENANT_FIGURES, 10**12 + 0.123456789)
    stats = replace(
        stats,
        tenants=tuple(TenantStats(slug, **counted) for slug in slugs[:most]),
        registry=replace(stats.registry, behind_slugs=tuple(slugs[:most])),
        figures={f"{number:056}_total": 10**12 + 0.123456789 for number in range(100)},
    )
    board = FigureBoard(1)

    board.write(0, stats, dict.fromkeys(slugs, 10**12 + 0.123456789))

    assert board.read_votes(without=1)[0].keys() == set(slugs)


def test_silent_worker_is_down_and_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has told nothing for a while is down; its numbers stay, and the next worker there adds to them."""
    fleet = Fleet(5)
    fleet.serve(1, "acme")
    fleet.leave[1]()
    monkeypatch.setattr(figure_board, "FRESH", -1.0)

    worker = fleet.board.read()[1]

    assert worker.stats is not None
    assert (worker.is_up, worker.starts, worker.stats.requests.by_status["2xx"]) == (False, 1, 1)
    leave = fleet.start(1)
    fleet.serve(1, "acme")
    leave()
    again = fleet.board.read()[1]
    assert again.stats is not None
    assert (again.starts, again.stats.requests.by_status["2xx"]) == (2, 2)

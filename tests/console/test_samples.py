"""How busy the workers were: from one worker's figures, or from the port of all of them."""

import socket
from dataclasses import replace

import pytest
from quart import Quart
from quart.typing import TestClientProtocol as Browser

from quart_tenants.console.load_page import draw
from quart_tenants.console.samples import Course, Sample, Samples, sample_metrics, sample_stats
from quart_tenants.errors import SettingError
from quart_tenants.measures.durations import BOUNDS
from quart_tenants.measures.metric_families import write_metrics
from quart_tenants.measures.sums import Worker
from quart_tenants.web.commands.busy_tenants import Look
from quart_tenants.web.commands.worker_figures import ask_workers
from quart_tenants.web.state import find_state
from tests.console.conftest import OwnConsole
from tests.console.pages import read
from tests.support.fixed_answers import answering

NOTHING = Sample(0, (0.0,) * (len(BOUNDS) + 1), 0, 0, 0)


def answer_within(bound: float, count: float) -> tuple[float, ...]:
    """Return the delays of *count* answers that began within *bound*, and not within the bound before it."""
    return tuple(count if end >= bound else 0.0 for end in (*BOUNDS, float("inf")))


async def list_values(*samples: Sample) -> dict[str, tuple[float, ...]]:
    """Return how each figure went."""
    left = list(samples)

    async def take() -> tuple[Sample, Look]:
        return left.pop(0), Look()

    kept = Samples(take)
    for _ in samples:
        await kept.add()
    return {course.title: course.values for course in kept.list_courses()}


async def test_course_is_made_of_the_differences() -> None:
    """Rates and times are those between two looks; connections and tenants are those of the second."""
    assert await list_values(NOTHING) == {}

    later = Sample(100, answer_within(0.1, 100), 5, 3, 7)
    values = await list_values(NOTHING, later, later)

    assert values["Requests"][0] > 0
    assert values["Requests"][1] == 0
    assert 50 < values["99 of 100 answers begin within"][0] <= 100
    assert values["99 of 100 answers begin within"][1] == 0
    assert values["Connections that are lent"] == (3, 3)
    assert values["Tenants that wait for a migration"] == (7, 7)


async def test_worker_that_began_anew_counts_for_nothing_less() -> None:
    """A counter that is smaller than before belongs to a new worker: the rate is 0 and not below."""
    values = await list_values(Sample(100, answer_within(0.1, 100), 1, 1, 0), NOTHING)

    assert values["Requests"] == (0,)
    assert values["99 of 100 answers begin within"] == (0,)


async def test_answers_that_take_longest_have_a_time() -> None:
    """Where answers took longer than the last bound, that bound is what is known of them."""
    slow = replace(NOTHING, requests=10, delays=(*(0.0,) * len(BOUNDS), 10.0))

    assert (await list_values(NOTHING, slow))["99 of 100 answers begin within"] == (BOUNDS[-1] * 1000,)


def test_plot_goes_from_zero_to_the_largest_value() -> None:
    """The largest value is at the top, 0 at the bottom, and one value alone is a line."""
    assert draw(Course("t", "ms", (0.0, 2.0, 1.0))).points == "0.0,60.0 150.0,0.0 300.0,30.0"
    assert draw(Course("t", "", (0.0,))).points == "0.0,60.0 300.0,60.0"
    assert (draw(Course("t", "ms", (1.5, 0.5))).now, draw(Course("t", "ms", (1.5, 0.5))).most) == ("0.5 ms", "1.5 ms")


@pytest.mark.slow
async def test_port_of_the_workers_tells_what_a_worker_counts(mounted: Quart) -> None:
    """The sample that is read from the metrics of two workers is the sum of theirs."""
    state = find_state(mounted)
    assert state is not None
    await mounted.test_client().get("/nothing", headers={"Host": "localhost"})
    stats = state.get_stats()
    one = sample_stats(stats)
    assert one.requests > 0
    body, _ = write_metrics([Worker(stats), Worker(stats, "1"), Worker(None, "2", is_up=False)], "")

    async with answering(b"HTTP/1.0 200 OK\r\n\r\n" + body) as address:
        both = sample_metrics(await ask_workers(address))

    assert both == Sample(
        2 * one.requests, tuple(2 * count for count in one.delays), 2 * one.connections, 2 * one.lent, one.behind
    )


async def test_port_that_is_away_or_answers_rubbish_is_named() -> None:
    """Whatever is there instead of the workers, the error names the setting and the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    with pytest.raises(SettingError, match=f"TENANTS_METRICS_BIND is 127.0.0.1:{free}, where no worker answers"):
        await ask_workers(f"127.0.0.1:{free}")

    for body in (b"rubbish", b"HTTP/1.0 200 OK\r\n\r\n\xff\xfe", b"HTTP/1.0 200 OK\r\n\r\nno metrics {at all", b""):
        async with answering(body) as address:
            with pytest.raises(SettingError, match="TENANTS_METRICS_BIND"):
                await ask_workers(address)


@pytest.mark.slow
async def test_page_says_why_there_are_no_plots(own: OwnConsole, client: Browser) -> None:
    """Without the port the page says which setting is missing; with two looks there are four plots."""
    await own.console.samples.add()
    assert "TENANTS_METRICS_BIND is not set" in await read(await client.get("/load"))

    async def take() -> tuple[Sample, Look]:
        return NOTHING, Look()

    own.console.samples._take = take
    for _ in range(2):
        await own.console.samples.add()
    page = await read(await client.get("/load"))
    assert page.count("<polyline") == 4
    assert "TENANTS_METRICS_BIND" not in page

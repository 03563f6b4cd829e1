"""What `status` and `doctor` learn from the workers: who hangs, who has no news, and that nobody answers."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from quart_tenants.measures.counts import Measures
from quart_tenants.measures.metric_families import write_metrics
from quart_tenants.measures.sums import Worker
from quart_tenants.postgres.doctor.catalogue_checks import State
from quart_tenants.settings import Settings
from quart_tenants.web.commands.worker_figures import check_workers
from tests.measures.test_metric_families import make_stats
from tests.support.fixed_answers import answering
from tests.web.commands.runs import Run

WELL = make_stats(Measures())
LATE = replace(WELL, registry=replace(WELL.registry, age=34.0))


@asynccontextmanager
async def telling(workers: Sequence[Worker]) -> AsyncIterator[Settings]:
    """Answer as *workers* would, and yield the settings that lead there."""
    body, _ = write_metrics(workers, "")
    async with answering(b"HTTP/1.0 200 OK\r\n\r\n" + body) as address:
        yield Settings(metrics_bind=address)


@pytest.mark.parametrize(
    ("workers", "seen"),
    [
        ([Worker(WELL), Worker(WELL, "1")], {}),
        ([Worker(WELL), Worker(WELL, "1", 3, is_up=False)], {"workers": "these hang, or are gone: 1"}),
        ([Worker(LATE)], {"feed of changes": "workers without news of the tenants answer 503: 0 (34 s)"}),
    ],
    ids=["well", "one hangs", "no news"],
)
async def test_workers_in_trouble_are_told(workers: list[Worker], seen: dict[str, str]) -> None:
    """A worker that gives no figures, and one that has no news of the tenants, need somebody; others do not."""
    async with telling(workers) as settings:
        findings = await check_workers(settings)

    assert {finding.check: finding.seen for finding in findings} == seen
    assert all(finding.state is State.TO_DO and finding.remedy for finding in findings)


async def test_nobody_is_asked_without_an_address() -> None:
    """Where `TENANTS_METRICS_BIND` is not set, nothing is said of workers."""
    assert await check_workers(Settings()) == []


@pytest.mark.slow
def test_status_and_doctor_tell_that_no_worker_answers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody answers at `TENANTS_METRICS_BIND`, both say so, with the address, and their exit status is 0."""
    with socket.socket() as taken:
        # It does not listen, so connections are refused.
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setenv("QUART_TENANTS_METRICS_BIND", str(port))

        status, doctor = run("status", "--no-drift"), run("doctor")

    assert (status.status, doctor.status) == (0, 0)
    assert status.out.splitlines()[0] == doctor.out.splitlines()[-1] == "1 thing needs doing: workers"
    assert f"127.0.0.1:{port}, where no worker answers" in status.out

"""What Prometheus gets: its own format, whatever a tenant is called, and not too much of it."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quart_tenants.app.passwords import PasswordHasher
from quart_tenants.measures.counts import Measures
from quart_tenants.measures.elections import Election
from quart_tenants.measures.metric_families import write_metrics
from quart_tenants.measures.metric_names import OTHERS
from quart_tenants.measures.stats import OpenBlock, PoolStats, RegistryStats, Stats, TenantStats
from quart_tenants.measures.sums import Worker
from quart_tenants.settings import Settings
from quart_tenants.web.commands.run_metrics import COMMAND_METRICS
from tests.measures.test_tenant_table import make_tenant

ROOT = Path(__file__).parents[2]
PROMTOOL = shutil.which("promtool")


def make_stats(measures: Measures) -> Stats:
    """Return the figures of a worker that has no database."""
    tenants, others = measures.tenants.show()
    return Stats(
        pid=1,
        uptime=1.0,
        requests=measures.show_requests(),
        pool=PoolStats(2, 10, 1, 0, 0, 0.5, 0.25, 1, 2, 4, 1, 3, dict(measures.connections_closed)),
        blocks=measures.show_blocks(),
        registry=RegistryStats(0.5, 10_000, 0, 1, ("initech",), 4, 0),
        sessions=measures.show_sessions(),
        logins=measures.show_logins(),
        tenants=tenants,
        other_tenants=others,
        open_blocks=(OpenBlock("acme", "open", 1.5, 4711),),
        figures={"orders_total": 3.0, "mails_waiting": 2.0},
    )


def read(text: bytes) -> dict[tuple[str, str, str], float]:
    """Return the samples of *text*, by name, worker and tenant; what has other labels is under one of them."""
    return {
        (sample.name, sample.labels.get("worker", ""), sample.labels.get("tenant", "")): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def count_series(text: bytes) -> int:
    """Return how many numbers Prometheus has to keep."""
    return sum(not line.startswith(b"#") for line in text.splitlines())


def test_eight_workers_make_a_small_page() -> None:
    """However many tenants and workers there are, twenty tenants are named; a worker more adds a few numbers."""
    workers, votes = [], []
    for worker in range(8):
        measures = Measures(named_tenants=20)
        for number in range(500):
            counts = measures.tenants.get(make_tenant(10_000 - worker * 400 - number))
            counts.requests += 1 + number % 7
            counts.block_seconds += 0.01
        votes.append(measures.tenants.find_busiest())
        workers.append(measures)
    named = Election(20).hold(votes)
    for measures in workers:
        measures.tenants.name(named)
    blocks = tuple(OpenBlock(f"t{number}", "open", 1.5, 4711) for number in range(50))
    living = [
        Worker(replace(make_stats(measures), open_blocks=blocks), str(number))
        for number, measures in enumerate(workers)
    ]

    text, content_type = write_metrics(living, "")
    alone, _ = write_metrics(living[:1], "")

    samples = read(text)
    assert {tenant for name, _, tenant in samples if name == "quart_tenants_tenant_requests_total"} == {*named, OTHERS}
    assert sum(value for (name, *_), value in samples.items() if name == "quart_tenants_tenant_requests_total") == sum(
        8 * (1 + number % 7) for number in range(500)
    )
    assert count_series(text) - count_series(alone) <= 7 * 15
    assert len(text) < 50_000
    assert content_type.startswith("text/plain")


def test_no_tenant_is_named_where_none_may_be() -> None:
    """With `TENANTS_METRICS_TENANTS=0` not even a tenant with open blocks has a line of its own."""
    stats = replace(make_stats(Measures()), registry=RegistryStats(0.5, 2, 0, 0, (), 0, 0))

    named, nobody = (read(write_metrics([Worker(stats)], "", most)[0]) for most in (1, 0))

    assert {tenant for _, _, tenant in named} == {"", OTHERS, "acme"}
    assert {tenant for _, _, tenant in nobody} == {"", OTHERS}


def test_hostile_names_stay_in_their_labels() -> None:
    """A name with quotes, line breaks or markup begins no line and ends no label."""
    hostile = 'a"b\nquart_tenants_worker_up{worker="0"} 7\n<script>\\'
    stats = replace(make_stats(Measures()), tenants=(TenantStats(hostile, requests=5),))

    samples = read(write_metrics([Worker(stats)], "")[0])

    assert samples["quart_tenants_tenant_requests_total", "", hostile] == 5
    assert samples["quart_tenants_worker_up", "0", ""] == 1


def test_worker_without_figures_is_down() -> None:
    """Of a worker that hangs or is gone it is told that it is down; what it has counted stays in the sums."""
    stats = make_stats(Measures())
    gone = [Worker(stats, "1", 3, is_up=False), Worker(None, "2", 0, is_up=False)]

    samples = read(write_metrics([Worker(stats), *gone], "")[0])

    assert {key[:2]: value for key, value in samples.items() if key[1] in ("1", "2")} == {
        ("quart_tenants_worker_up", "1"): 0.0,
        ("quart_tenants_worker_starts_total", "1"): 3.0,
        ("quart_tenants_worker_up", "2"): 0.0,
        ("quart_tenants_worker_starts_total", "2"): 0.0,
    }
    assert samples["quart_tenants_opened_connections_total", "", ""] == 2 * stats.pool.opened
    assert samples["quart_tenants_app_orders_total", "", ""] == 6
    assert samples["quart_tenants_app_mails_waiting", "0", ""] == 2


def test_latest_news_say_how_many_tenants_there_are() -> None:
    """The fleet is one, so its numbers are those of the worker that has read the registry last."""
    new = make_stats(Measures())
    old = replace(new, registry=RegistryStats(34.0, 9_000, 0, 0, (), 4, 0))

    samples = read(write_metrics([Worker(old), Worker(new, "1")], "")[0])

    assert samples["quart_tenants_tenants", "", ""] == 10_000
    assert samples["quart_tenants_tenant_behind", "", "initech"] == 1
    assert samples["quart_tenants_registry_age_seconds", "0", ""] == 34


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_names_and_units_follow_prometheus_conventions() -> None:
    """Prometheus' own linter has nothing to say."""
    text, _ = write_metrics([Worker(make_stats(Measures()))], "")

    checked = subprocess.run(
        [str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, check=False, timeout=120
    )

    assert (checked.returncode, checked.stderr) == (0, b""), checked.stderr.decode()


def test_examples_ask_for_metrics_that_there_are() -> None:
    """Every metric that the documentation, the alerts and the dashboard name is one of ours or the reference app's."""
    stats = replace(make_stats(Measures()), figures=PasswordHasher(Settings()).count())
    text, _ = write_metrics([Worker(stats)], "")
    ours = {name for name, _, _ in read(text)} | set(COMMAND_METRICS)
    named = {
        name
        for place in ("docs/measures.md", "examples/alerts.yml", "examples/grafana.json")
        for name in re.findall(r"quart_tenants_\w+(?=[\[{} ):`\"])", (ROOT / place).read_text(encoding="utf-8"))
        if not name.startswith("quart_tenants_backup")
    }

    assert len(named) > 15
    assert named - ours == set()


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
@pytest.mark.parametrize("what", [("rules", "alerts.yml"), ("config", "--syntax-only", "prometheus.yml")], ids=str)
def test_examples_are_what_prometheus_takes(what: tuple[str, ...]) -> None:
    """Prometheus' own checker takes the rules and the configuration."""
    checked = subprocess.run(
        [str(PROMTOOL), "check", *what], cwd=ROOT / "examples", capture_output=True, check=False, timeout=120, text=True
    )

    assert checked.returncode == 0, checked.stderr

"""The port for Prometheus: what goes wrong can be told from it, and nothing else can be had there."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from quart_tenants.app import create_app
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug
from tests.security.test_logs import SECRETS, find_secrets
from tests.server.test_supervision import find_workers
from tests.support.patience import DEADLINE, wait_until
from tests.support.processes import (
    PROGRAM,
    SECRET_KEY,
    Server,
    find_metrics_port,
    make_environment,
    run_server,
    run_warm,
    run_warm_program,
    wait_for_line,
)

pytestmark = pytest.mark.slow

CONFIG = 'bind = "127.0.0.1:0"\nworkers = {workers}\nworker_class = "uvloop"\n'

Samples = dict[str, float]

# company1 is slow, company2 holds its connections for a while, and acme was not migrated.
PLANT = """
ALTER TABLE company1.company_data RENAME TO real_data;
CREATE VIEW company1.company_data AS
    SELECT id, description FROM company1.real_data, LATERAL (SELECT pg_sleep(1.5), '{secret}') AS s;
ALTER TABLE company2.company_data RENAME TO real_data;
CREATE VIEW company2.company_data AS
    SELECT id, description FROM company2.real_data, LATERAL (SELECT pg_sleep(0.05)) AS s;
UPDATE quart_tenants.applied_migrations SET schema_name = 'elsewhere' WHERE schema_name = 'acme';
"""
_PAUSE = 0.05  # seconds between two requests of one client
QUIET = tuple(f"quiet{number}" for number in range(16))
CONSOLE_SAYS = "the console is at "
SLOW, FLOODING, ATTACKED, BEHIND = "company1", "company2", "globex", "acme"


def write_config(folder: Path, workers: int) -> Path:
    """Return a configuration with so many workers."""
    config = folder / "hypercorn.toml"
    config.write_text(CONFIG.format(workers=workers))
    return config


async def scrape(port: int) -> str:
    """Return what Prometheus gets."""
    async with httpx.AsyncClient(verify=False) as client:  # noqa: S501  (http only)
        answer = await client.get(f"http://127.0.0.1:{port}/metrics")
    assert answer.status_code == 200
    return answer.text


def read(text: str) -> Samples:
    """Return the samples of *text*, of all workers together, by name and the labels but for that of the worker."""
    summed: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(
                f"{name}={value}" for name, value in sorted(sample.labels.items()) if name not in ("worker", "le")
            )
            name = f"{sample.name.removeprefix('quart_tenants_')}{{{labels}}}"
            summed[name] = summed.get(name, 0) + sample.value
    return summed


async def wait_for(port: int, holds: Callable[[Samples], bool]) -> Samples:
    """Return the samples in which something *holds*, as soon as there are such ones."""
    seen: Samples = {}

    async def look() -> bool:
        seen.clear()
        seen.update(read(await scrape(port)))
        return holds(seen)

    await wait_until(look)
    return seen


def metrics(**settings: str) -> dict[str, str]:
    """Return the settings by which there is a port for Prometheus."""
    return {"QUART_TENANTS_METRICS_BIND": "0", "QUART_TENANTS_SLOW_BLOCK": "0.15", **settings}


async def ask_for_ever(client: httpx.AsyncClient, method: str, path: str, **options: Any) -> None:
    """Send the same request again and again, also where it is not answered, until this is cancelled."""
    while True:
        with contextlib.suppress(httpx.TransportError):
            await client.request(method, path, **options)
        # One that is refused is answered at once. Without a pause this process and the server would do nothing else.
        await asyncio.sleep(_PAUSE)


@contextlib.asynccontextmanager
async def planted_load(server: Server) -> AsyncIterator[None]:
    """Let four tenants do what they are known for, and sixteen others a little, at the same time."""
    wrong = {"uname": "user_2", "passwd": SECRETS["a wrong password"]}
    async with contextlib.AsyncExitStack() as stack:
        slow, flooding = [await stack.enter_async_context(server.member(number)) for number in (1, 2)]
        attacked, behind = [await stack.enter_async_context(server.tenant(slug)) for slug in (ATTACKED, BEHIND)]
        quiet = [await stack.enter_async_context(server.tenant(slug)) for slug in QUIET]
        work = [
            ask_for_ever(slow, "GET", "/data"),
            *(ask_for_ever(flooding, "GET", "/data") for _ in range(12)),
            ask_for_ever(attacked, "POST", "/login", data=wrong),
            ask_for_ever(behind, "GET", "/data"),
        ]
        tasks = [asyncio.create_task(one) for one in work]
        try:
            for client in quiet:
                assert (await client.get("/data")).status_code == 401
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def by_tenant(samples: Samples, figure: str) -> dict[str, float]:
    """Return a figure of each tenant that is named."""
    pattern = re.compile(rf"tenant_{figure}_total{{tenant=([a-z0-9]+)}}")
    found = [(pattern.fullmatch(name), value) for name, value in samples.items()]
    return {match[1]: value for match, value in found if match is not None}


def find_most(figures: Mapping[str, float]) -> str:
    """Return the tenant of whom there is more than of any other."""
    first, second = sorted(figures, key=figures.__getitem__, reverse=True)[:2]
    assert figures[first] > figures[second]
    return first


@contextlib.asynccontextmanager
async def open_console(log: Path, **settings: str) -> AsyncIterator[httpx.AsyncClient]:
    """Start the console, and yield a browser in which it is open."""
    with run_warm_program("console", log=log, **settings) as process:
        address = wait_for_line(process, CONSOLE_SAYS, log).removeprefix(CONSOLE_SAYS).strip()
        async with httpx.AsyncClient(
            base_url=address.partition("?")[0],
            timeout=DEADLINE,
            verify=False,  # noqa: S501
        ) as client:
            assert (await client.get(address)).status_code == 200
            yield client


async def wait_for_top(environment: dict[str, str]) -> CompletedProcess[str]:
    """Run `top` until it has seen a statement of the slow tenant, which is shown while it runs."""
    ended = None

    async def look() -> bool:
        nonlocal ended
        ended = await asyncio.to_thread(run_warm, PROGRAM, "top", "--json", "--every", "4", env=environment)
        assert ended.returncode == 0, ended.stderr
        tenants = {tenant["tenant"]: tenant for tenant in json.loads(ended.stdout)["tenants"]}
        return SLOW in tenants and "company_data" in tenants[SLOW]["statement"] and tenants[SLOW]["blocks"] > 0

    await wait_until(look)
    assert ended is not None
    return ended


def read_busy(page: str) -> dict[str, list[str]]:
    """Return the cells of the table of tenants on the console's page about the load, by tenant, without the marks."""
    body = re.search(r"<tbody>(.*)</tbody>", page, re.DOTALL)
    found = {}
    for row in re.findall(r"<tr>(.*?)</tr>", "" if body is None else body[1], re.DOTALL):
        cells = [
            " ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)
        ]
        found[cells[0].split()[0]] = cells
    return found


async def wait_for_console(client: httpx.AsyncClient) -> str:
    """Return the page about the load, as soon as all that was planted can be told from it."""
    page = ""

    async def look() -> bool:
        nonlocal page
        page = (await client.get("/load")).text
        rows = read_busy(page)
        # Rates are those of the last five seconds, and a statement is shown while it runs.
        return (
            {SLOW, FLOODING, ATTACKED, BEHIND} <= rows.keys()
            and "company_data" in rows[SLOW][7]
            and float(rows[SLOW][2].removesuffix(" s")) > 1
            and float(rows[FLOODING][4]) > 0
            and float(rows[ATTACKED][5]) > 0
        )

    await wait_until(look)
    return page


async def test_what_goes_wrong_is_told(database_url: str, settings: Settings, tmp_path: Path) -> None:
    """Of twenty tenants the slow, the attacked, the flooding one and the one behind are told, and a killed worker.

    Each is told by Prometheus' figures alone, by `top` alone, and by the console alone.
    """
    secret = SECRETS["a row that a statement failed on"]
    async with await Database.open(settings, max_size=1) as database:
        for slug in QUIET:
            await create_tenant(database, parse_slug(slug), slug, settings=settings)
        async with database.connection() as connection:
            await connection.execute(PLANT.format(secret=secret))
    config = write_config(tmp_path, 2)
    few = {"QUART_TENANTS_POOL_MAX_SIZE": "4", "QUART_TENANTS_TENANT_POOL_QUEUE": "0"}
    environment = make_environment(QUART_TENANTS_DATABASE_URL=database_url)
    with run_server(database_url, tmp_path, "--config", str(config), **metrics(**few)) as server:
        port = find_metrics_port(server)
        at = {"QUART_TENANTS_DATABASE_URL": database_url, "QUART_TENANTS_METRICS_BIND": f"127.0.0.1:{port}"}
        os.kill(min(find_workers(server.process.pid)), signal.SIGKILL)
        await wait_for(port, lambda seen: seen["worker_starts_total{}"] == 3 and seen["worker_up{}"] == 2)
        async with open_console(tmp_path / "console", **at) as console, planted_load(server):
            # Rates are known of a tenant that was named before. The slow one has had its second answer then.
            await wait_for(
                port,
                lambda seen: (
                    by_tenant(seen, "blocks").get(SLOW, 0) >= 3
                    and by_tenant(seen, "failed_logins").get(ATTACKED, 0) >= 3
                    and by_tenant(seen, "refused_requests").get(FLOODING, 0) >= 3
                    and set(QUIET) <= by_tenant(seen, "requests").keys()
                ),
            )
            samples = read(await scrape(port))
            told = await wait_for_top(environment | at)
            page = await wait_for_console(console)
        log = server.log.read_text()

    # By Prometheus.
    blocks, seconds = by_tenant(samples, "blocks"), by_tenant(samples, "block_seconds")
    assert by_tenant(samples, "requests").keys() == {SLOW, FLOODING, ATTACKED, *QUIET}
    assert find_most({slug: seconds[slug] / max(blocks[slug], 1) for slug in seconds}) == SLOW
    assert find_most(by_tenant(samples, "failed_logins")) == ATTACKED
    assert find_most(by_tenant(samples, "refused_requests")) == FLOODING
    assert samples["refused_blocks_total{for=share}"] >= 3
    assert samples[f"tenant_behind{{tenant={BEHIND}}}"] == 1
    assert (samples["worker_starts_total{}"], samples["worker_up{}"]) == (3, 2)
    assert samples["app_password_checks_total{}"] >= samples["logins_total{outcome=failed}"] >= 3
    assert samples["app_password_check_seconds_total{}"] > 0
    # By top.
    document = json.loads(told.stdout)
    tenants = {tenant["tenant"]: tenant for tenant in document["tenants"]}
    assert find_most({slug: tenant["block_takes"] for slug, tenant in tenants.items()}) == SLOW
    assert find_most({slug: tenant["failed_logins"] for slug, tenant in tenants.items()}) == ATTACKED
    assert find_most({slug: tenant["refused"] for slug, tenant in tenants.items()}) == FLOODING
    assert [slug for slug, tenant in tenants.items() if tenant["behind"]] == [BEHIND]
    assert [worker["up"] for worker in document["workers"]] == [True, True]
    assert sorted(worker["starts"] for worker in document["workers"]) == [1, 2]
    # By the console.
    rows = read_busy(page)
    assert find_most({slug: float(cells[2].removesuffix(" s")) for slug, cells in rows.items()}) == SLOW
    assert find_most({slug: float(cells[5]) for slug, cells in rows.items()}) == ATTACKED
    assert find_most({slug: float(cells[4]) for slug, cells in rows.items()}) == FLOODING
    assert [slug for slug, cells in rows.items() if cells[0].endswith("behind")] == [BEHIND]
    assert "2 of 2 workers up, 1 started again" in page
    # By the log.
    slow_lines = [line for line in log.splitlines() if "slow_block" in line]
    assert any(SLOW in line for line in slow_lines)
    assert "TENANTS_METRICS_BIND is ignored" not in log
    assert find_secrets(told.stdout + told.stderr + log + page) == []


async def test_tenants_host_has_no_metrics(database_url: str, tmp_path: Path) -> None:
    """The port of the app answers no `/metrics`, and that of Prometheus no page of the app."""
    with run_server(database_url, tmp_path, **metrics()) as server:
        port = find_metrics_port(server)
        async with server.tenant("acme") as client:
            at_the_app = await client.get("/metrics")
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Host": "acme.localhost"},
            verify=False,  # noqa: S501
        ) as client:
            elsewhere = [(await client.get(path)).status_code for path in ("/", "/data", "/healthz", "/metrics/")]
            posted = await client.post("/metrics")

    assert at_the_app.status_code == 404
    assert elsewhere == [404] * 4
    assert posted.status_code == 405


async def test_no_secret_is_in_a_metric(database_url: str, tmp_path: Path) -> None:
    """Passwords, tokens, cookies and rows are neither in the figures nor in the lines about slow blocks."""
    settings = {"QUART_TENANTS_SLOW_BLOCK": "0.001", "QUART_SECRET_KEY": SECRETS["the secret key"]}
    with run_server(database_url, tmp_path, **metrics(**settings)) as server:
        async with server.tenant("company1") as client:
            client.headers["Authorization"] = f"Bearer {SECRETS['an Authorization header']}"
            for name, password in (
                ("user_1", SECRETS["a wrong password"]),
                (SECRETS["a password in the field for the name"], "foo"),
                ("user_1", "foo"),
            ):
                await client.post("/login?token=planted-query-token", data={"uname": name, "passwd": password})
            cookie = client.cookies["session"]
            row = (await client.get("/data")).text
        async with server.tenant("planted-query-token") as client:
            await client.get("/data")
        port = find_metrics_port(server)
        await wait_for(port, lambda seen: seen.get("tenant_requests_total{tenant=company1}") == 4)
        text = await scrape(port)
        log = server.log.read_text()

    assert "slow_block" in log
    assert "planted-query-token" not in text, "the name of no tenant is a label"
    assert find_secrets(text + log, cookie=cookie, row=row) == []


async def test_other_server_says_that_it_opens_no_port(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """On a server that is not ours the setting does nothing, and one line of the log says so; unset, none does."""
    config = {"TENANTS_DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY}
    for bind in (None, "9464"):
        app = create_app({**config, "TENANTS_METRICS_BIND": bind})
        async with app.test_app():
            pass

    told = [record.getMessage() for record in caplog.records if "TENANTS_METRICS_BIND" in record.getMessage()]
    assert len(told) == 1
    assert "get_stats()" in told[0]


def test_taken_port_is_named(database_url: str, tmp_path: Path) -> None:
    """A port for Prometheus that another program has is an error of one line, before anything is served."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        environment = make_environment(
            QUART_TENANTS_DATABASE_URL=database_url,
            QUART_SECRET_KEY=SECRET_KEY,
            QUART_TENANTS_METRICS_BIND=address,
        )
        ended = run_warm(PROGRAM, "serve", "--config", str(write_config(tmp_path, 0)), env=environment)

    assert ended.returncode == 1
    assert address in ended.stderr
    assert ended.stdout == ""

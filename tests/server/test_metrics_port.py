"""The port for Prometheus: what goes wrong can be told from it, and nothing else can be had there."""

import asyncio
import json
import os
import re
import signal
import socket
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path

import asyncpg
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.security.test_logs import SECRETS, find_secrets
from tests.server.test_supervision import find_workers
from tests.support.patience import wait_until
from tests.support.processes import PROGRAM, SECRET_KEY, Server, make_environment, run_server, run_warm

pytestmark = pytest.mark.slow

CONFIG = 'bind = "127.0.0.1:0"\nworkers = {workers}\nworker_class = "uvloop"\n'

Samples = dict[str, float]

# company1 is slow, and acme was not migrated.
PLANT = """
ALTER TABLE company1.company_data RENAME TO real_data;
CREATE VIEW company1.company_data AS
    SELECT id, description FROM company1.real_data, LATERAL (SELECT pg_sleep(0.2)) AS s;
UPDATE quart_tenants.applied_migrations SET schema_name = 'elsewhere' WHERE schema_name = 'acme';
"""


def find_metrics_port(server: Server) -> int:
    """Return the port that the log names."""
    match = re.search(r"metrics at http://127\.0\.0\.1:(\d+)/metrics", server.log.read_text())
    assert match is not None
    return int(match[1])


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


async def test_what_goes_wrong_is_told(database_url: str, tmp_path: Path) -> None:
    """A slow tenant, an attacked one, a flooding one, one that is behind, and a killed worker are told apart."""
    admin = await asyncpg.connect(database_url)
    await admin.execute(PLANT)
    config = write_config(tmp_path, 2)
    with run_server(database_url, tmp_path, "--config", str(config), **metrics()) as server:
        port = find_metrics_port(server)
        async with server.member() as slow:
            for _ in range(3):
                assert (await slow.get("/data")).status_code == 200
        async with server.tenant("company2") as attacked:
            for _ in range(8):
                await attacked.post("/login", data={"uname": "user_2", "passwd": SECRETS["a wrong password"]})
        async with server.tenant("globex") as flooding:
            for _ in range(200):
                assert (await flooding.get("/data")).status_code == 401
        async with server.tenant("acme") as behind:
            refused = await behind.get("/data")

        samples = await wait_for(
            port,
            lambda seen: seen.get("tenant_requests_total{tenant=globex}") == 200 and seen["worker_up{}"] == 2,
        )
        first = find_workers(server.process.pid)
        os.kill(min(first), signal.SIGKILL)
        killed = await wait_for(port, lambda seen: seen["worker_starts_total{}"] == 3 and seen["worker_up{}"] == 2)

    tenants = ("company1", "company2", "globex")
    seconds = {slug: samples.get(f"tenant_block_seconds_total{{tenant={slug}}}", 0.0) for slug in tenants}
    failed = {slug: samples.get(f"tenant_failed_logins_total{{tenant={slug}}}", 0.0) for slug in tenants}
    requests = {slug: samples.get(f"tenant_requests_total{{tenant={slug}}}", 0.0) for slug in tenants}
    assert max(seconds, key=seconds.__getitem__) == "company1"
    assert seconds["company1"] >= 0.6
    assert samples["slow_blocks_total{}"] >= 3
    assert failed == {"company1": 0, "company2": 8, "globex": 0}
    assert samples["logins_total{outcome=failed}"] == 8
    assert max(requests, key=requests.__getitem__) == "globex"
    assert refused.status_code == 503
    assert samples["tenant_behind{tenant=acme}"] == 2, "each of two workers says so"
    assert killed["worker_starts_total{}"] == 3
    slow_lines = [line for line in server.log.read_text().splitlines() if "slow_block" in line]
    assert slow_lines
    assert all("company1" in line for line in slow_lines)
    await admin.close()


async def test_top_tells_who_is_busy(database_url: str, tmp_path: Path) -> None:
    """`top` names the slow tenant with its statement, the attacked, the flooding one, and the one that is behind."""
    secret = SECRETS["a row that a statement failed on"]
    admin = await asyncpg.connect(database_url)
    await admin.execute(PLANT.replace("pg_sleep(0.2)", f"pg_sleep(1.5), '{secret}'"))
    await admin.close()
    config = write_config(tmp_path, 2)
    environment = make_environment(QUART_TENANTS_DATABASE_URL=database_url)
    with run_server(database_url, tmp_path, "--config", str(config), **metrics()) as server:
        port = find_metrics_port(server)
        async with (
            server.member() as slow,
            server.tenant("company2") as attacked,
            server.tenant("globex") as flooding,
        ):

            async def attack() -> None:
                password = SECRETS["a wrong password"]
                while True:
                    await attacked.post("/login", data={"uname": "user_2", "passwd": password})

            async def flood() -> None:
                while True:
                    await flooding.get("/data")

            async def wait_long() -> None:
                while True:
                    await slow.get("/data")

            load = [asyncio.create_task(work) for work in (attack(), flood(), wait_long())]
            # Each worker names a tenant after it has seen it for the first time.
            named = [f"tenant_requests_total{{tenant={slug}}}" for slug in ("company1", "company2", "globex")]
            await wait_for(port, lambda seen: all(seen.get(name) for name in named))
            told = await asyncio.to_thread(
                run_warm, PROGRAM, "top", "--json", "--every", "4", "--at", f"127.0.0.1:{port}", env=environment
            )
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)

    assert told.returncode == 0, told.stderr
    document = json.loads(told.stdout)
    tenants = {tenant["tenant"]: tenant for tenant in document["tenants"]}
    assert [worker["up"] for worker in document["workers"]] == [True, True]
    assert max(tenants.values(), key=itemgetter("block_seconds"))["tenant"] == "company1"
    assert tenants["company1"]["connections"] == 1
    assert "company_data" in tenants["company1"]["statement"]
    assert max(tenants.values(), key=itemgetter("failed_logins"))["tenant"] == "company2"
    assert max(tenants.values(), key=itemgetter("requests"))["tenant"] == "globex"
    assert tenants["acme"]["behind"]
    assert find_secrets(told.stdout + told.stderr) == []


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

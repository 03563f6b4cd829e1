"""Ask the workers of `serve` for their figures, by the port that they have for Prometheus, and say what is wrong."""

import asyncio
import urllib.request
from collections.abc import Iterable
from http.client import HTTPException
from typing import NamedTuple

from quart_tenants.errors import SettingError
from quart_tenants.long_lists import name_some
from quart_tenants.measures import metric_names as names
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.doctor.catalogue_checks import Finding, State
from quart_tenants.postgres.doctor.fleet_tasks import find_tasks
from quart_tenants.postgres.fleet.status import FleetStatus
from quart_tenants.settings import Settings

_ANSWERS_WITHIN = 5.0  # seconds

Samples = dict[tuple[str, str, str], float]
"""By name, worker and tenant: empty texts for a number of all workers, and of no tenant."""


class Told(NamedTuple):
    """One number that the workers tell, with the labels that say of what. Its name is without our prefix."""

    name: str
    labels: dict[str, str]
    value: float


async def ask_workers(address: str) -> list[Told]:
    """Return what the workers tell at *address*.

    Raises:
        SettingError: Nobody answers there, or the extra `metrics` is not installed.
    """
    return await asyncio.to_thread(_ask, address)


def sort_by_tenant(told: Iterable[Told]) -> Samples:
    """Return the numbers that have no other labels than the worker and the tenant."""
    return {
        (each.name, each.labels.get("worker", ""), each.labels.get("tenant", "")): each.value
        for each in told
        if each.labels.keys() <= {"worker", "tenant"}
    }


async def find_all_tasks(database: Database, status: FleetStatus, *, settings: Settings) -> list[Finding]:
    """Return what somebody has to do: what `find_tasks` finds, which also says what is raised, and at the workers."""
    return [*await find_tasks(database, status, settings=settings), *await check_workers(settings)]


def list_workers(samples: Samples) -> dict[str, bool]:
    """Return the workers, and whether each gives figures."""
    return {worker: bool(value) for (name, worker, _), value in samples.items() if name == names.WORKER_UP}


async def check_workers(settings: Settings) -> list[Finding]:
    """Return what is wrong with the workers; nothing without `TENANTS_METRICS_BIND`, because nobody can know then."""
    if settings.metrics_bind is None:
        return []
    try:
        samples = sort_by_tenant(await ask_workers(settings.metrics_bind))
    except SettingError as error:
        return [Finding("workers", State.TO_DO, str(error), "start serve, or unset TENANTS_METRICS_BIND here")]
    findings = []
    silent = [worker for worker, is_up in list_workers(samples).items() if not is_up]
    if silent:
        seen = f"these hang, or are gone: {name_some(silent)}"
        findings.append(Finding("workers", State.TO_DO, seen, "see the log of serve, which replaces them"))
    late = [
        f"{worker} ({seconds:.0f} s)"
        for (name, worker, _), seconds in samples.items()
        if name == names.REGISTRY_AGE and seconds > settings.registry_max_age
    ]
    if late:
        seen = f"workers without news of the tenants answer 503: {name_some(late)}"
        findings.append(Finding("feed of changes", State.TO_DO, seen, "see whether they reach the database"))
    return findings


def _ask(address: str) -> list[Told]:
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ModuleNotFoundError as error:
        raise SettingError("TENANTS_METRICS_BIND", "needs the extra: pip install 'quart-tenants[metrics]'") from error
    try:
        # The scheme is ours, and no proxy of the environment is asked.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{address}/metrics", timeout=_ANSWERS_WITHIN) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    except (OSError, HTTPException, ValueError) as error:
        raise SettingError(
            "TENANTS_METRICS_BIND", f"is {address}, where no worker answers ({error}): is `serve` running with it?"
        ) from error
    return [
        Told(sample.name.removeprefix(names.PREFIX), dict(sample.labels), sample.value)
        for family in families
        for sample in family.samples
    ]

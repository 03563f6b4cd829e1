"""Say what an operator has to do. `doctor`, `status` and whoever else tells it ask here, so that all say the same."""

from collections.abc import Sequence

from quart_tenants.long_lists import name_some
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.doctor.catalogue_checks import Finding, State, find_leaks, judge, list_problem
from quart_tenants.postgres.fleet.status import FleetStatus
from quart_tenants.postgres.migrations.migration_files import get_shared_migrations
from quart_tenants.postgres.tenants.purge import find_purgeable
from quart_tenants.settings import Settings

_MIGRATE = "run quart-tenants migrate"


async def find_tasks(database: Database, status: FleetStatus, *, settings: Settings) -> list[Finding]:
    """Return what somebody has to do, the leaks first; nothing if all is well. This changes nothing.

    It makes no probes, which `examine` does. What is only advice, such as a warning of the doctor's, is not in it.

    Args:
        database: The database of the tenants.
        status: From `get_fleet_status`. Without its drift, nothing is said of drift.
        settings: The settings of *status*.

    Raises:
        RegistryNotReadyError: There is no registry yet, or this role may not read it.
        DatabaseUnavailableError: The database cannot be reached.
    """
    findings = await find_leaks(database, settings=settings)
    findings += await check_fleet(database, status, settings=settings)
    return list_tasks(findings)


def list_tasks(findings: Sequence[Finding]) -> list[Finding]:
    """Return those of *findings* that somebody has to do something about."""
    return [finding for finding in findings if finding.state in (State.LEAK, State.FAILED, State.TO_DO)]


def describe_tasks(tasks: Sequence[Finding]) -> str:
    """Return a line that says whether anything needs doing, and what."""
    if not tasks:
        return "nothing needs doing"
    names = ", ".join(dict.fromkeys(task.check for task in tasks))
    return f"{len(tasks)} thing{'s need' if len(tasks) > 1 else ' needs'} doing: {names}"


async def check_fleet(database: Database, status: FleetStatus, *, settings: Settings) -> list[Finding]:
    """Return one finding for each check of what *status* says, and of the trash. Raises the errors of `find_tasks`."""
    failed = {failure.slug for failure in status.failures}
    behind = [tenant.slug for tenant in status.behind if tenant.slug not in failed]
    failures = [
        f"{failure.slug} ({failure.migration or 'no file'}: {' '.join(failure.reason.split())})"
        for failure in status.failures
    ]
    edited = [f"{edited.file} ({name_some(edited.slugs)})" for edited in status.edited]
    shared = len(get_shared_migrations(settings))
    due = [tenant.slug for tenant in await find_purgeable(database, settings=settings)]
    findings = [
        _find("failed migrations", _count("failed", failures), "mend what the reason names, and " + _MIGRATE),
        _find("tenants behind", _count(f"older than {status.newest_file}", behind), _MIGRATE),
        _find(
            "edited files",
            list_problem("these were changed after they had run", edited),
            "put them back as they ran, and write a new file for the change",
        ),
        _find(
            "trash",
            _count(f"dropped more than {settings.trash_days:g} days ago, or half deleted", due),
            "run quart-tenants purge",
        ),
        *check_drift(status),
    ]
    if shared:
        seen = f"they are at {status.shared_version:04}, and the newest file is {shared:04}"
        findings.append(_find("shared migrations", seen if status.shared_version < shared else "", _MIGRATE))
    return findings


def check_drift(status: FleetStatus) -> list[Finding]:
    """Return the finding of the comparison; none if the tables were not compared."""
    if status.drift is None:
        return []
    seen = _count("with other tables than most at the same version", [drift.slug for drift in status.drift])
    return [_find("drift", seen, "status names the differences: write a migration for them, or undo them by hand")]


def _find(check: str, problem: str, remedy: str) -> Finding:
    return judge(check, problem, "none", remedy, State.TO_DO)


def _count(what: str, names: Sequence[str]) -> str:
    """Return how many of *names* there are and the first of them, or nothing if there are none."""
    return list_problem(f"{len(names)} tenant{'s' * (len(names) != 1)}, {what}", names)

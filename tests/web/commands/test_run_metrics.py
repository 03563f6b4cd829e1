"""`--metrics FILE`: what a command leaves for node_exporter. Also `top` where no worker tells anything."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.web.commands.runs import Run, execute

pytestmark = pytest.mark.slow


def read(file: Path) -> dict[str, float]:
    """Return the numbers in *file*, by name without what all have in common."""
    return {
        sample.name.removeprefix("quart_tenants_command_"): sample.value
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
    }


@pytest.mark.parametrize("command", [("migrate",), ("doctor",), ("purge", "--yes")], ids="-".join)
def test_command_that_went_well_says_so(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    """The file has when the command ended, how long it took, and that nothing failed; nobody reads half of it."""
    file = tmp_path / "quart_tenants.prom"

    outcome = run(*command, "--metrics", str(file))

    told = read(file)
    assert outcome.status == 0, outcome.err
    assert told["failures"] == 0
    assert told["duration_seconds"] > 0
    assert told["success_timestamp_seconds"] == told["run_timestamp_seconds"] > 1_700_000_000
    assert f'command="{command[0]}"' in file.read_text()
    assert list(tmp_path.iterdir()) == [file]


def test_backup_of_all_says_how_many_failed(run: Run, tmp_path: Path, database_url: str) -> None:
    """After a failure the file has the number of tenants that failed, and when the command last ended well."""
    file = tmp_path / "backup.prom"
    run("backup", "--all", "-o", str(tmp_path / "one"), "--metrics", str(file))
    before = read(file)
    execute(database_url, "DROP SCHEMA acme CASCADE")

    outcome = run("backup", "--all", "-o", str(tmp_path / "two"), "--metrics", str(file))

    after = read(file)
    assert outcome.status == 1
    assert before["failures"] == 0
    assert after["failures"] == 1
    assert after["success_timestamp_seconds"] == before["success_timestamp_seconds"]
    assert after["run_timestamp_seconds"] > before["run_timestamp_seconds"]


def test_run_that_does_nothing_leaves_nothing(run: Run, tmp_path: Path) -> None:
    """A dry run is no run that an alert should take for one."""
    file = tmp_path / "migrate.prom"

    outcome = run("migrate", "--dry-run", "--metrics", str(file))

    assert outcome.status == 0
    assert not file.exists()


@pytest.mark.parametrize("place", ["missing/backup.prom", "backup.txt"])
def test_file_that_nobody_would_read_is_refused_first(run: Run, tmp_path: Path, place: str) -> None:
    """A folder that is missing, or a name that node_exporter passes over, is an error before anything is done."""
    outcome = run("migrate", "--metrics", str(tmp_path / place))

    assert outcome.status == 2
    assert outcome.out == ""
    assert place in outcome.err


def test_top_without_a_port_shows_what_the_server_knows(run: Run) -> None:
    """Without `TENANTS_METRICS_BIND` it says what is missing, and where nobody answers, that nobody does."""
    alone = run("top", "--every", "0.1", "--json")
    nobody = run("top", "--every", "0.1", "--at", "1")
    wrong = run("top", "--at", "example.com:9464")

    assert (alone.status, nobody.status, wrong.status) == (0, 1, 2)
    assert '"tenants": []' in alone.out
    assert "TENANTS_METRICS_BIND is not set" in alone.err
    assert "no worker answers" in nobody.err
    assert "example.com:9464" in wrong.err

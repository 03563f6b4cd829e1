"""Say what became of each tenant in a backup of all."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from quart_tenants.postgres.backup_folders.backup_all import BackupReport
from quart_tenants.web.commands.run_metrics import note_failures
from quart_tenants.web.commands.running import count_tenants

_ENOUGH = 100  # tenants, for a rate


def tell_report(report: BackupReport, folder: Path, *, as_json: bool) -> None:
    """Print what became of the backup of all tenants into *folder*; end with status 1 if one has no new file."""
    if as_json:
        click.echo(json.dumps(_show(report)))
    else:
        _print(report, folder)
    if report.failed or report.left or report.damaged:
        note_failures(len(report.failed) + len(report.left) + len(report.damaged))
        sys.exit(1)


def _print(report: BackupReport, folder: Path) -> None:
    for line in (*report.notes, *report.damaged.values()):
        click.echo(line, err=True)
    for slug, error in report.failed:
        click.echo(f"{slug} was not backed up: {error}", err=True)
    if report.left:
        click.echo("stopped: the others would fail, too; mend it, and run it again", err=True)
    for backup in report.unknown:
        click.echo(
            f"{backup.file} is the newest file of a tenant that is not in this database any more; it is never deleted "
            "by itself",
            err=True,
        )
    rate = f", {len(report.made) / report.seconds:.1f} a second" if len(report.made) >= _ENOUGH else ""
    click.echo(
        f"backed up {count_tenants(len(report.made))} to {folder} in {report.seconds:.1f} s{rate}; "
        f"{len(report.failed)} failed, {len(report.left)} not tried, done before an interruption: {report.resumed}, "
        f"old files deleted: {len(report.deleted)}"
    )


def _show(report: BackupReport) -> dict[str, Any]:
    return {
        "began_at": report.began_at.isoformat(),
        "made": [
            {"slug": backup.slug, "file": backup.file, "size": backup.size, "sha256": backup.sha256}
            for backup in report.made
        ],
        "done_before": report.resumed,
        "failed": [{"slug": slug, "error": str(error)} for slug, error in report.failed],
        "not_tried": list(report.left),
        "damaged": report.damaged,
        "deleted": [backup.file for backup in report.deleted],
        "unknown": [backup.file for backup in report.unknown],
        "notes": report.notes,
        "seconds": round(report.seconds, 3),
    }

"""Leave how a command went in a file for the textfile collector of node_exporter, which Prometheus asks."""

import functools
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_FAILURES = "quart_tenants.failures"
_ENDED_AT = "quart_tenants_command_run_timestamp_seconds"
_DURATION = "quart_tenants_command_duration_seconds"
_FAILED = "quart_tenants_command_failures"
_SUCCEEDED_AT = "quart_tenants_command_success_timestamp_seconds"
COMMAND_METRICS = {
    _ENDED_AT: "When the command ended last.",
    _DURATION: "How long it took then.",
    _FAILED: "How many tenants or checks failed then; 0: all is well.",
    _SUCCEEDED_AT: "When the command ended well last.",
}
"""What the file has, each with its help."""


def leaves_metrics(command: F) -> F:
    """Give *command* the option `--metrics FILE`, and write the file at its end, also after an error.

    A run with `--dry-run` writes none: it has done nothing.
    """

    @functools.wraps(command)
    def run(*args: Any, metrics: Path | None, **kwargs: Any) -> Any:
        if metrics is None:
            return command(*args, **kwargs)
        # Before anything is done. The file itself is written by a new one that takes its place.
        _check(metrics)
        context = click.get_current_context()
        began_at = time.monotonic()
        failed = True
        try:
            result = command(*args, **kwargs)
            failed = False
        except (click.exceptions.Exit, SystemExit) as error:
            failed = bool(error.exit_code if isinstance(error, click.exceptions.Exit) else error.code)
            raise
        finally:
            if not kwargs.get("dry_run"):
                noted = context.meta.get(_FAILURES, 0)
                failures = max(noted, 1) if failed else 0
                _write(metrics, str(context.info_name), time.monotonic() - began_at, failures)
        return result

    option = click.option(
        "--metrics",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Write how it went into FILE (.prom), for node_exporter.",
    )
    decorated: Any = option(run)
    return decorated  # type: ignore[no-any-return]


def note_failures(number: int) -> None:
    """Note for `--metrics` how many tenants or checks have failed in the running command."""
    context = click.get_current_context(silent=True)
    if context is not None:
        context.meta[_FAILURES] = number


def _check(file: Path) -> None:
    if importlib.util.find_spec("prometheus_client") is None:
        raise click.UsageError("--metrics needs the extra: pip install 'quart-tenants[metrics]'")
    if file.suffix != ".prom":
        raise click.UsageError(f"--metrics {file}: node_exporter reads files whose names end in .prom")
    if not file.absolute().parent.is_dir():
        raise click.UsageError(f"--metrics {file}: there is no folder {file.absolute().parent}")


def _write(file: Path, command: str, seconds: float, failures: int) -> None:
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    now = time.time()
    told = {_ENDED_AT: now, _DURATION: seconds, _FAILED: failures}
    succeeded_at = _find_success(file, command) if failures else now
    if succeeded_at is not None:
        told[_SUCCEEDED_AT] = succeeded_at

    registry = CollectorRegistry()
    for name, value in told.items():
        Gauge(name, COMMAND_METRICS[name], ("command",), registry=registry).labels(command).set(value)
    try:
        # A new file, which is then renamed: node_exporter never reads half of one.
        write_to_textfile(str(file), registry)
    except OSError as error:
        raise click.ClickException(f"the metrics could not be written to {file}: {error.strerror}") from error


def _find_success(file: Path, command: str) -> float | None:
    """Return when *command* ended well last, as the file of the run before says it."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        families = list(text_string_to_metric_families(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    samples = [sample for family in families for sample in family.samples]
    found = [one.value for one in samples if one.name == _SUCCEEDED_AT and one.labels.get("command") == command]
    return found[0] if found else None

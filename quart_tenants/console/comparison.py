"""Read the drift from what `status --json` has written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quart_tenants.console.runs import Runs
from quart_tenants.tenant import Slug


@dataclass(frozen=True)
class Comparison:
    """The tables of all tenants, compared.

    Attributes:
        run: The number of the command that has compared them.
        drift: How those differ that do, one line each, by slug.
    """

    run: int
    drift: Mapping[Slug, Sequence[str]]


class Comparisons:
    """Finds the newest comparison among the commands that a console has run."""

    def __init__(self, runs: Runs | None) -> None:
        self._runs = runs
        self._newest: Comparison | None = None

    def find_newest(self) -> Comparison | None:
        """Return it, or None if there is none."""
        for run in [] if self._runs is None else self._runs.list():
            if run.status == 0 and run.output:
                if self._newest is None or self._newest.run != run.number:
                    self._newest = Comparison(run.number, _read_drift(run.output))
                break
        return self._newest


def _read_drift(document: bytes) -> dict[Slug, tuple[str, ...]]:
    told = json.loads(document)["drift"] or []
    return {Slug(one["slug"]): tuple(one["differences"]) for one in told}

"""Turn the revisions of Alembic into the numbered files that the command `migrate` runs in each tenant.

    python alembic_files.py alembic.ini migrations

The first line of each file names its revision. A file that is there stays as it is, because it may have run. Files of
your own may stand between them. The offline part of `env.py` must say `transactional_ddl=False`, because each file runs
in a transaction already.
"""

import io
import re
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory

_HEADER = re.compile(r"-- Alembic revision (\S+)")
_MOST_LETTERS = 40


def write_files(config: Config, folder: Path) -> list[Path]:
    """Write a file for each revision that has none in *folder*. Return the new files.

    Raises:
        SystemExit: The revisions have no single order, or a new one stands before one that has a file.
    """
    numbers, written = _read_folder(folder)
    files: list[Path] = []
    for revision in _list_revisions(config):
        if revision.revision in written:
            if files:
                raise SystemExit(
                    f"revision {revision.revision} has a file, and one before it has none: a new revision comes last"
                )
            continue
        config.output_buffer = text = io.StringIO()
        command.upgrade(config, f"{revision.down_revision or 'base'}:{revision.revision}", sql=True)
        if text.getvalue().startswith("BEGIN;"):
            raise SystemExit("add transactional_ddl=False to context.configure() in the offline part of env.py")
        numbers += 1
        words = re.sub(r"[^a-z0-9]+", "_", (revision.doc or "revision").lower()).strip("_")
        path = folder / f"{numbers:04}_{words[:_MOST_LETTERS]}.sql"
        path.write_text(f"-- Alembic revision {revision.revision}\n{text.getvalue()}", encoding="utf-8")
        files.append(path)
    return files


def _read_folder(folder: Path) -> tuple[int, set[str]]:
    """Return the largest number of a file in *folder*, and the revisions that have a file."""
    numbers, revisions = 0, set()
    for path in folder.glob("[0-9][0-9][0-9][0-9]_*.sql"):
        numbers = max(numbers, int(path.name[:4]))
        if header := _HEADER.match(path.read_text(encoding="utf-8")):
            revisions.add(header[1])
    return numbers, revisions


def _list_revisions(config: Config) -> list[Script]:
    """Return the revisions of *config*, the first one first."""
    scripts = ScriptDirectory.from_config(config)
    heads = scripts.get_heads()
    revisions = list(scripts.walk_revisions())[::-1]
    joined = [one.revision for one in revisions if not isinstance(one.down_revision, str | None)]
    if len(heads) > 1 or joined:
        raise SystemExit(f"revisions must follow one another, and these branch: {', '.join([*heads, *joined])}")
    return revisions


if __name__ == "__main__":
    for path in write_files(Config(sys.argv[1]), Path(sys.argv[2])):
        print(path)

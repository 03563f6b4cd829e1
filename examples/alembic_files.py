"""Turn the revisions of Alembic into the numbered files that `quart-tenants migrate` runs in each tenant.

    python alembic_files.py alembic.ini migrations

A file that is there already stays as it is: it may have run. Revisions must follow one another without branches.
"""

import io
import re
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

# Each file runs in a transaction already.
_TRANSACTION = re.compile(r"^(BEGIN|COMMIT);\n+", re.MULTILINE)


def write_files(config: Config, folder: Path) -> list[Path]:
    """Write a file for each revision that has none in *folder*. Return the new files."""
    written = []
    revisions = reversed(list(ScriptDirectory.from_config(config).walk_revisions()))
    for number, revision in enumerate(revisions, start=1):
        before = revision.down_revision or "base"
        if not isinstance(before, str):
            raise SystemExit(f"revision {revision.revision} joins two branches: put its revisions into one line")
        words = re.sub(r"[^a-z0-9]+", "_", (revision.doc or "revision").lower()).strip("_")
        path = folder / f"{number:04}_{words[:40]}.sql"
        if list(folder.glob(f"{number:04}_*.sql")):
            continue
        config.output_buffer = text = io.StringIO()
        command.upgrade(config, f"{before}:{revision.revision}", sql=True)
        path.write_text(_TRANSACTION.sub("", text.getvalue()), encoding="utf-8")
        written.append(path)
    return written


if __name__ == "__main__":
    for path in write_files(Config(sys.argv[1]), Path(sys.argv[2])):
        print(path)

"""Make a folder for a PostgreSQL of a benchmark's own, and remove it afterwards."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder. What PostgreSQL still writes there at the end does not matter."""
    folder = Path(tempfile.mkdtemp(prefix="quart-tenants-benchmark-"))
    # Started by root, PostgreSQL runs as nobody.
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

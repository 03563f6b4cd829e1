"""Write files whole or not at all, with errors that name the file."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from quart_tenants.errors import BackupFileError

UNREADABLE = "cannot be read"
"""What an error says of a file that is not there, or that may not be read."""


@contextlib.contextmanager
def file_errors(path: Path, failure: str) -> Iterator[None]:
    """Turn an `OSError` in the block into a `BackupFileError`.

    Args:
        path: The file or folder that the block is about.
        failure: What the error says of it, for example "cannot be read".
    """
    try:
        yield
    except OSError as error:
        raise BackupFileError(str(path), f"{failure}: {error.strerror or error}") from error


@contextlib.contextmanager
def write_whole(file: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Lend a new file that gets the name *file* if the block ends without an error; otherwise nothing is left of it.

    Only its owner may read it. The block flushes it to the disk.

    Raises:
        BackupFileError: It cannot be written.
    """
    with file_errors(file, "cannot be written"):
        # It has mode 0600, and is in the same folder because a rename cannot cross file systems.
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name[:100]}.", dir=file.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as opened:
                yield temporary, opened
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

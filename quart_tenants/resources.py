"""Find the files that travel with the package: `sql/` and `hypercorn.toml`."""

import functools
from pathlib import Path

_PACKAGE = Path(__file__).parent


def get_resource_path(name: str) -> Path:
    """Return the path of *name*, for example `sql/tenant`.

    A wheel has the file inside the package, and a checkout has it beside the package.

    Raises:
        FileNotFoundError: It is in neither folder, so the installation is broken.
    """
    for folder in (_PACKAGE, _PACKAGE.parent):
        path = folder / name
        if path.exists():
            return path
    raise FileNotFoundError(f"{name} is missing from the installation of quart_tenants; install it again")


@functools.cache
def read_statement(name: str) -> str:
    """Return the SQL statement in `sql/statements/<name>.sql`, without the comments at its start."""
    lines = get_resource_path(f"sql/statements/{name}.sql").read_text(encoding="utf-8").splitlines(keepends=True)
    while lines[0].startswith("--"):
        del lines[0]
    return "".join(lines)

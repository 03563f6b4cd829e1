"""Schemas that people really have, each as a file with the SQL that makes it and fills it.

The names in a file are its own, so that several of them fit into one tenant. Two folders are for some servers only:
from version 17 on PostgreSQL builds indexes and fills materialized views with an empty path of its own, and what is in
`until_16/` cannot be made there. `shadowing/` has functions with the names of PostgreSQL's own.
"""

from pathlib import Path

_FOLDER = Path(__file__).parent

_GROUPS = 6
GROUPS = range(_GROUPS + 1)


def list_groups(server_version: int) -> list[list[Path]]:
    """Return files for a server of this version, for example 180001, in groups of about ten for one tenant each.

    Each backup and each restore starts several programs, so a tenant for each file would take long.
    """
    files = sorted(_FOLDER.glob("*.sql"))
    if server_version >= 180000:
        files += sorted((_FOLDER / "from_18").glob("*.sql"))
    if server_version < 170000:
        files += sorted((_FOLDER / "until_16").glob("*.sql"))
    # Where a function of the tenant's own may be taken for one of PostgreSQL's, less is restored than elsewhere.
    return [
        *(files[start::_GROUPS] for start in range(_GROUPS)),
        [_FOLDER / "shadowing" / "names_of_the_servers_own.sql"],
    ]


def get_file(name: str) -> Path:
    """Return one file."""
    return _FOLDER / f"{name}.sql"


def get_schema(name: str) -> str:
    """Return the SQL of one file."""
    return get_file(name).read_text(encoding="utf-8")

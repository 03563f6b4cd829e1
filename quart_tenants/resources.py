"""Find the files that travel with the package: `sql/` and `hypercorn.toml`."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def get_resource_path(name: str) -> Path:
    """Return where *name*, for example `sql/tenant`, lies.

    It lies inside the package when this was installed from a wheel, and beside the package
    in a checkout.

    Raises:
        FileNotFoundError: It lies in neither place: the installation is broken.
    """
    for folder in (_PACKAGE, _PACKAGE.parent):
        path = folder / name
        if path.exists():
            return path
    raise FileNotFoundError(f"{name} is missing from the installation of quart_tenants; install it again")

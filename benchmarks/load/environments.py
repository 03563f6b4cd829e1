"""Keep a virtual environment for each peer, made anew only when its requirements change."""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

import platformdirs


def get_cache_folder() -> Path:
    """Return where environments are kept unless another folder is given."""
    return platformdirs.user_cache_path("quart-tenants-benchmarks")


def make_environment(folder: Path, requirements: Path) -> Path:
    """Return the folder of the programs of an environment with *requirements*, in *folder*.

    Raises:
        RuntimeError: pip could not install them.
    """
    text = f"{sys.version}\n{requirements.read_text()}"
    name = requirements.parent.name
    environment = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    finished = environment / "finished"
    if not finished.exists():
        print(f"making an environment for {name} in {environment}", file=sys.stderr)
        venv.EnvBuilder(with_pip=True, clear=True).create(environment)
        pip = subprocess.run(
            [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
             "--requirement", requirements],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if pip.returncode:
            raise RuntimeError(f"the requirements of {name} could not be installed:\n{pip.stderr}")
        finished.touch()
    return environment / "bin"

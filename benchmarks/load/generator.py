"""Load a server with wrk, which checks each answer's tenant."""

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).with_name("wrk.lua")
EXPONENT = 1.1
"""Of Zipf's law, by which tenants are drawn."""


@dataclass(frozen=True)
class Load:
    """What one run of wrk came to.

    Attributes:
        requests: That were answered.
        seconds: It took.
        wrong: Answers of status 200 without the rows of the tenant that was asked for.
        refused: How many answers there were of each other status.
        failed: Connections that could not be made, or broke.
        p50: The median of how long an answer took, in milliseconds.
        p99: The 99th percentile of that.
    """

    requests: int
    seconds: float
    wrong: int
    refused: dict[str, int]
    failed: int
    p50: float
    p99: float

    @property
    def mistakes(self) -> int:
        """How many answers were not what they had to be."""
        return self.wrong + sum(self.refused.values()) + self.failed


def find_wrk() -> str | None:
    """Return the program, if there is one."""
    return shutil.which("wrk")


def write_tenants(path: Path, cookies: Sequence[tuple[str, str]], rows: int) -> None:
    """Write the file of tenants with their cookies for wrk, the most popular tenant first.

    The first and the last row of each are looked for in its answers.
    """
    lines = []
    for tenant, cookie in cookies:
        marks = [f'"{tenant} row {number}"' for number in sorted({1, rows})]
        lines.append("\t".join([f"{tenant}.localhost", cookie, *marks]) + "\n")
    path.write_text("".join(lines))


async def run_wrk(
    port: int,
    tenants: Path,
    *,
    connections: int,
    seconds: float,
    seed: int,
    path: str = "/data",
    pause: int = 0,
    exponent: float = EXPONENT,
) -> Load:
    """Ask for *seconds* through as many keep-alive connections, each *pause* milliseconds after its answer."""
    wrk = find_wrk()
    if wrk is None:
        raise RuntimeError("there is no wrk on PATH")
    process = await asyncio.create_subprocess_exec(
        wrk, f"-t{connections}", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s",
        "-s", _SCRIPT, f"http://127.0.0.1:{port}{path}", "--", tenants, str(exponent), str(seed), str(pause),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    for line in output.decode().splitlines():
        if line.startswith("RESULT "):
            told = json.loads(line.removeprefix("RESULT "))
            told["seconds"] = told.pop("microseconds") / 1e6
            return Load(**told)
    raise RuntimeError(f"wrk ended with {process.returncode}: {output.decode()}")

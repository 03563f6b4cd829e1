"""The examples for systemd and Caddy: their syntax everywhere, and by the programs themselves where they exist."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import click
import pytest

from quart_tenants.app import create_app
from quart_tenants.server.supervisor import KILL_MARGIN
from quart_tenants.settings import get_key, read_settings
from quart_tenants.web.commands.backups import backup_command
from quart_tenants.web.commands.serve import serve_command
from quart_tenants.web.routing.ask_route import ASK_PATH
from tests.support.patience import DEADLINE
from tests.support.processes import PROGRAM

ROOT = Path(__file__).parents[1]
UNIT = ROOT / "examples" / "quart-tenants.service"
SOCKET = ROOT / "examples" / "quart-tenants.socket"
CADDYFILE = ROOT / "examples" / "Caddyfile"
SERVER = tomllib.loads((ROOT / "hypercorn.toml").read_text())

# Of systemd.unit, systemd.service, systemd.exec and systemd.kill: a misspelt one is only warned of, and does nothing.
DIRECTIVES = {
    "Unit": {"Description", "Wants", "After", "StartLimitIntervalSec", "StartLimitBurst"},
    "Service": {
        *("Type", "EnvironmentFile", "Environment", "WorkingDirectory", "ExecStart", "ExecReload"),
        *("Restart", "RestartSec"),
        *("KillSignal", "KillMode", "TimeoutStopSec", "DynamicUser", "NoNewPrivileges", "ProtectSystem"),
        *("ProtectHome", "PrivateTmp", "PrivateDevices", "ProtectProc", "ProtectClock", "ProtectHostname"),
        *("ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectControlGroups"),
        *("CapabilityBoundingSet", "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime"),
        *("RestrictSUIDSGID", "LockPersonality", "RemoveIPC", "SystemCallArchitectures", "SystemCallFilter"),
        *("SystemCallErrorNumber", "UMask", "LimitNOFILE", "LimitCORE"),
    },
    "Install": {"WantedBy"},
}


BACKUP_UNIT = ROOT / "examples" / "quart-tenants-backup.service"
BACKUP_DIRECTIVES = {
    "Unit": {"Description", "Wants", "After"},
    "Service": {
        *("Type", "EnvironmentFile", "WorkingDirectory", "ExecStart", "DynamicUser", "StateDirectory"),
        *("StateDirectoryMode", "UMask", "NoNewPrivileges", "ProtectSystem", "ProtectHome", "PrivateTmp"),
        *("PrivateDevices", "CapabilityBoundingSet", "RestrictAddressFamilies", "RestrictNamespaces"),
        *("LockPersonality", "SystemCallArchitectures", "Nice", "IOSchedulingClass"),
    },
}
TIMER = BACKUP_UNIT.with_suffix(".timer")
TIMER_DIRECTIVES = {
    "Unit": {"Description"},
    "Timer": {"OnCalendar", "RandomizedDelaySec", "Persistent"},
    "Install": {"WantedBy"},
}


def read_unit(file: Path = UNIT) -> dict[str, list[tuple[str, str]]]:
    """Return the directives of the unit by section."""
    sections: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for line in file.read_text().splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            current.append((name, value))
    return sections


def read_caddy_lines() -> list[str]:
    """Return the lines of the Caddyfile that say something."""
    lines = [line.strip() for line in CADDYFILE.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def find_in_caddyfile(directive: str) -> str:
    """Return what the only line that begins with *directive* says."""
    (found,) = [line for line in read_caddy_lines() if line.split()[0] == directive]
    return found.partition(" ")[2]


@pytest.mark.parametrize(
    ("file", "known"), [(UNIT, DIRECTIVES), (BACKUP_UNIT, BACKUP_DIRECTIVES), (TIMER, TIMER_DIRECTIVES)]
)
def test_unit_has_known_directives_only(file: Path, known: dict[str, set[str]]) -> None:
    """Each directive stands in a section that has it."""
    used = {section: {name for name, _ in directives} for section, directives in read_unit(file).items()}

    assert used == known


def test_backup_unit_starts_a_command_that_exists() -> None:
    """The nightly ExecStart is our program with options that `backup` has, and writes where systemd lets it."""
    service = dict(read_unit(BACKUP_UNIT)["Service"])
    program, command, *arguments = service["ExecStart"].split()

    context = backup_command.make_context(command, arguments)

    assert (Path(program).name, command) == (PROGRAM.name, backup_command.name)
    assert (context.params["everybody"], context.params["days"]) == (True, 14)
    assert context.params["path"] == Path("/var/lib") / service["StateDirectory"]


def test_socket_is_where_the_proxy_looks() -> None:
    """The socket that systemd holds is the address of hypercorn.toml, with as many places in its queue."""
    sections = read_unit(SOCKET)
    names = {section: {name for name, _ in directives} for section, directives in sections.items()}
    given = dict(sections["Socket"])

    assert names == {
        "Unit": {"Description"},
        "Socket": {"ListenStream", "Backlog", "NoDelay"},
        "Install": {"WantedBy"},
    }
    assert [given["ListenStream"]] == SERVER["bind"]
    assert int(given["Backlog"]) == SERVER["backlog"]


def test_unit_starts_a_command_that_exists() -> None:
    """ExecStart is our program with options that `serve` has."""
    service = dict(read_unit()["Service"])
    program, command, *arguments = service["ExecStart"].split()

    context = serve_command.make_context(command, arguments)

    assert Path(program).name == PROGRAM.name
    assert command == serve_command.name
    assert context.params["port"] == 5000


def test_unit_lets_requests_in_flight_end() -> None:
    """The parent alone gets SIGTERM, and systemd waits longer than it does; an end with status 1 is a restart."""
    service = dict(read_unit()["Service"])

    assert (service["KillSignal"], service["KillMode"], service["Restart"]) == ("SIGTERM", "mixed", "on-failure")
    assert float(service["TimeoutStopSec"]) > SERVER["graceful_timeout"] + KILL_MARGIN


def test_unit_takes_up_new_code_by_the_signal_that_serve_knows() -> None:
    """`systemctl reload` sends SIGHUP to the supervisor, which is the main process."""
    service = dict(read_unit()["Service"])

    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert service["Type"] == "exec"


def test_unit_names_settings_that_exist() -> None:
    """What the unit says to write into the environment is read by us."""
    named = set(re.findall(r"QUART_(TENANTS_[A-Z_]+)=", UNIT.read_text()))

    assert named <= {get_key(setting) for setting in type(read_settings({})).__dataclass_fields__.values()}
    assert "TENANTS_DATABASE_URL" in named


def test_caddyfile_has_balanced_blocks() -> None:
    """Each block that is opened at the end of a line is closed on a line of its own."""
    depth = 0
    for written in read_caddy_lines():
        # Placeholders have braces as well.
        line = re.sub(r"\{[a-z_.]+\}", "", written)
        depth += line.endswith("{") - (line == "}")
        assert depth >= 0
        assert line == "}" or "}" not in line

    assert depth == 0


def test_caddyfile_fits_the_app() -> None:
    """Its addresses, paths and limits are those of the app and of hypercorn.toml."""
    app = create_app()
    paths = {rule.rule for rule in app.url_map.iter_rules()}

    assert find_in_caddyfile("ask") == f"https://example.com{ASK_PATH}"
    assert find_in_caddyfile("reverse_proxy") == f"{SERVER['bind'][0]} 127.0.0.1:5001 {{"
    # What is written twice must not be sent twice.
    assert set(find_in_caddyfile("lb_retry_match").split()) == {"method", "GET", "HEAD", "OPTIONS"}
    assert find_in_caddyfile("health_uri") in paths
    assert int(find_in_caddyfile("keepalive").removesuffix("s")) < SERVER["keep_alive_timeout"]
    assert int(find_in_caddyfile("max_size").removesuffix("KB")) * 1000 > app.config["MAX_CONTENT_LENGTH"]
    assert find_in_caddyfile("@h2c") == "header_regexp Upgrade (?i)h2c"
    assert find_in_caddyfile("request_header") == "@h2c -Upgrade"
    assert "header_up X-Request-Id {http.request.uuid}" in read_caddy_lines()
    # Or it would pass on what a visitor says of itself.
    assert "trusted_proxies" not in {line.split()[0] for line in read_caddy_lines()}


def check_by_program(tmp_path: Path, *command: str | Path) -> None:
    """Run the program that reads such a file, if it is here."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed here")
    environment = os.environ | {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}

    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=DEADLINE, check=False)

    assert done.returncode == 0, done.stderr
    assert not re.search("unknown|ignoring", done.stderr, re.IGNORECASE), done.stderr


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing to say about it, nor about its socket."""
    copy = tmp_path / UNIT.name
    # It wants to find the program, whose folder may have a blank in its name.
    copy.write_text(UNIT.read_text().replace("/opt/quart-tenants/bin/quart-tenants ", f'"{PROGRAM}" '))
    socket = tmp_path / SOCKET.name
    socket.write_text(SOCKET.read_text())

    check_by_program(tmp_path, "systemd-analyze", "verify", "--man=no", copy, socket)


def test_caddy_accepts_the_caddyfile(tmp_path: Path) -> None:
    """`caddy validate` can load it."""
    check_by_program(tmp_path, "caddy", "validate", "--adapter", "caddyfile", "--config", CADDYFILE)


def test_click_is_what_reads_the_options() -> None:
    """An option that `serve` does not have is refused, or the test of ExecStart would mean nothing."""
    with pytest.raises(click.NoSuchOption):
        serve_command.make_context("serve", ["--wrokers", "4"])

"""Hypercorn's configuration: what `serve` takes from a file, and what it refuses."""

from pathlib import Path

import pytest

from quart_tenants.errors import SettingError
from quart_tenants.server.configuration import load_server_config


def test_own_configuration_is_right() -> None:
    """The file that travels with the program passes."""
    assert load_server_config().workers == 2


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("workers = 0", "workers", 0),
        ('bind = "unix:/run/x"', "bind", ["unix:/run/x"]),
        ('bind = ["127.0.0.1:1", "[::1]:1"]', "bind", ["127.0.0.1:1", "[::1]:1"]),
        ("graceful_timeout = 2.5", "graceful_timeout", 2.5),
        ("read_timeout = 90", "read_timeout", 90),
        ("max_requests = 1000", "max_requests", 1000),
        ('errorlog = "-"', "errorlog", "-"),
        ('certfile = "/x"', "certfile", "/x"),
        ("verify_mode = 2", "verify_mode", 2),
        ("cert_reqs = 0", "verify_mode", 0),
        ("debug = true", "debug", True),
        ('application_path = "app:app"', "application_path", "app:app"),
    ],
)
@pytest.mark.filterwarnings("ignore:Please use verify_mode")
def test_key_of_hypercorn_is_taken(tmp_path: Path, text: str, key: str, value: object) -> None:
    """What Hypercorn can set, a file can say."""
    path = tmp_path / "hypercorn.toml"
    path.write_text(text)

    assert getattr(load_server_config(path), key) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('workers = "x"', "workers is 'x' in {path}: give a whole number"),
        ("workers = -1", "workers is -1 in {path}: give a whole number"),
        ("workers = true", "workers is True in {path}: give a whole number"),
        ("workers = 1.5", "workers is 1.5 in {path}: give a whole number"),
        ("backlog = []", "backlog is [] in {path}: give a whole number"),
        ('graceful_timeout = "10"', "graceful_timeout is '10' in {path}: give a number"),
        ("graceful_timeout = inf", "graceful_timeout is inf in {path}: give a number"),
        ("read_timeout = -1", "read_timeout is -1 in {path}: give a number"),
        ("bind = 5000", "bind is 5000 in {path}: give host:port, or a list of them"),
        ("bind = []", "bind is [] in {path}: give host:port, or a list of them"),
        ("bind = [5000]", "bind is [5000] in {path}: give host:port, or a list of them"),
        ("alpn_protocols = 'h2'", "alpn_protocols is 'h2' in {path}: give a list of texts"),
        ("errorlog = 1", "errorlog is 1 in {path}: give a text"),
        ('include_server_header = "no"', "include_server_header is 'no' in {path}: give true or false"),
        ('worker_class = "trio"', "worker_class is 'trio' in {path}: give uvloop or asyncio"),
        ("wrkers = 2", "wrkers in {path} is no setting of Hypercorn's; did you mean workers?"),
        ("qqqqqqqqqq = 2", "qqqqqqqqqq in {path} is no setting of Hypercorn's"),
        ("[server]\nworkers = 2", "server in {path} is no setting of Hypercorn's"),
        ("create_sockets = 1", "create_sockets in {path} is no setting of Hypercorn's"),
        ("ssl_enabled = true", "ssl_enabled in {path} is no setting of Hypercorn's"),
    ],
)
def test_mistake_is_told_with_its_key(tmp_path: Path, text: str, problem: str) -> None:
    """What Hypercorn would overlook, or fail on with a traceback, is named with the file and the remedy."""
    path = tmp_path / "hypercorn.toml"
    path.write_text(text)

    with pytest.raises(SettingError) as caught:
        load_server_config(path)

    assert str(caught.value).startswith(problem.format(path=path))

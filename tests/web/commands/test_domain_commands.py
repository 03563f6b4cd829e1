"""The commands about domains: what each prints, and what it refuses."""

from collections.abc import Iterator

import pytest

from quart_tenants.postgres.tenants.domains import list_domains
from tests.support.name_server import NameServer, run_name_server
from tests.web.commands.runs import Run, ask, assert_misused, assert_refused, make_run

SHOP = "shop.example.com"


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    """The DNS that the commands ask."""
    with run_name_server() as server:
        monkeypatch.setenv("QUART_TENANTS_DNS_SERVERS", server.address)
        yield server


@pytest.fixture
def domain(
    database_url: str, name_server: NameServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run `quart-tenants domain`."""
    run = make_run(database_url, monkeypatch, capsys)
    return lambda *arguments: run("domain", *arguments)


def test_domain_is_added_in_two_steps(domain: Run, database_url: str, name_server: NameServer) -> None:
    """The first run says which record to make and ends with 1; the second finds it."""
    first = domain("add", "acme", "Shop.Example.com.")
    (claim,) = ask(database_url, list_domains)
    between = domain("list", "acme")
    name_server.prove(claim)
    second = domain("add", "acme", SHOP)

    assert_refused(first, "type TXT", claim.record_name, claim.record_value)
    assert between.out == f"{SHOP}\tacme\tnot verified\n"
    assert (second.status, second.out, second.err) == (0, f"{SHOP} leads to acme\n", "")
    assert domain("list").out == f"{SHOP}\tacme\tserved\n"


def test_trusted_domain_needs_no_dns(domain: Run, name_server: NameServer) -> None:
    """--trusted serves at once; removing ends it, and says whose it was."""
    name_server.on_question = pytest.fail

    assert domain("add", "acme", SHOP, "--trusted").out == f"{SHOP} leads to acme\n"
    assert_refused(domain("add", "globex", SHOP, "--trusted"), "another tenant's", f"domain remove {SHOP}")
    assert domain("remove", SHOP).out == f"removed {SHOP} of acme (served)\n"
    assert_refused(domain("remove", SHOP), SHOP)
    empty = domain("list")
    assert (empty.status, empty.out) == (0, "")
    assert "domain add" in empty.err


def test_wrong_domains_and_tenants_are_refused(domain: Run) -> None:
    """Each mistake is one line that names it."""
    assert_refused(domain("add", "acme", "https://shop.example.com"), "https://", "without port and scheme")
    assert_refused(domain("add", "acme", "acme.localhost"), "outside localhost")
    assert_refused(domain("add", "nobody", SHOP), "nobody")
    assert_refused(domain("list", "nobody"), "nobody")
    assert_refused(domain("remove", "localhost"), "localhost")
    assert_misused(domain("add", "acme"), "DOMAIN")


def test_terminal_gets_a_table(domain: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person reads columns with heads."""
    domain("add", "acme", SHOP, "--trusted")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)

    head, row = domain("list").out.splitlines()

    assert head.split() == ["domain", "tenant", "state"]
    assert row.split() == [SHOP, "acme", "served"]

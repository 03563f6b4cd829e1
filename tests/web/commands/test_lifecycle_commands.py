"""The commands that make many tenants, suspend, rename, drop, bring back and purge: what each prints and refuses."""

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quart_tenants.app.cli import main
from quart_tenants.postgres.registry.registry_tables import list_tenants
from quart_tenants.postgres.tenants.trash import list_trash
from quart_tenants.resources import get_resource_path
from tests.web.commands.runs import (
    NO_TERMINAL,
    Outcome,
    Run,
    ask,
    assert_misused,
    assert_refused,
    execute,
    find_slugs,
)

pytestmark = pytest.mark.slow

LONG_AGO = "UPDATE quart_tenants.resting_names SET free_at = free_at - interval '1 day'"
DAY = r"\d{4}-\d\d-\d\d"

Answer = Callable[..., Outcome]


class Terminal(io.TextIOWrapper):
    """An operator who has typed ahead."""

    def isatty(self) -> bool:
        """Say that somebody is there."""
        return True


@pytest.fixture
def answer(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Answer:
    """Run a command as `run` does, but on a terminal where the operator types one line."""

    def run_and_type(typed: str, *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO(f"{typed}\n".encode()), "utf-8"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main.main(list(arguments), prog_name="quart-tenants")
        out, err = capsys.readouterr()
        return Outcome(caught.value.code if isinstance(caught.value.code, int) else 1, out, err)

    return run_and_type


@pytest.fixture
def write_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], str]:
    """Write a file new.csv; return its name."""
    monkeypatch.chdir(tmp_path)

    def write(content: str | bytes) -> str:
        Path("new.csv").write_bytes(content.encode() if isinstance(content, str) else content)
        return "new.csv"

    return write


# suspend, resume, rename


def test_suspend_and_resume_take_several_and_finish_the_rest(run: Run) -> None:
    """One that fails is named on stderr and ends the command with 1; the others are done."""
    suspended = run("suspend", "acme", "nobody", "globex", "acme")

    assert suspended == Outcome(
        1,
        "suspended acme\nsuspended globex\n",
        "nobody: no tenant answers at 'nobody'\nError: 1 of 3 tenants failed\n",
    )
    states = {line.split("\t")[0]: line.split("\t")[4] for line in run("list").out.splitlines()}
    assert states == {"acme": "suspended", "company1": "active", "company2": "active", "globex": "suspended"}
    assert run("resume", "acme", "globex") == Outcome(0, "resumed acme\nresumed globex\n", "")
    assert "suspended" not in run("list").out


@pytest.mark.parametrize("command", ["suspend", "resume", "drop", "rename", "undrop", "create-many"])
def test_command_needs_a_tenant(run_in_vain: Run, command: str) -> None:
    """A command typed wrong ends with status 2, and does nothing."""
    assert_misused(run_in_vain(command))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["suspend", "nobody"], "no tenant answers at 'nobody'"),
        (["suspend", "acme", "Not A Slug"], "'Not A Slug' cannot be a tenant"),
        (["rename", "acme", "globex"], "tenant 'globex' exists already"),
        (["rename", "acme", "acme"], "tenant 'acme' exists already"),
        (["rename", "acme", "www"], "reserved by TENANTS_RESERVED_SLUGS"),
        (["rename", "nobody", "newco"], "no tenant answers at 'nobody'"),
        (["drop", "public", "--yes"], "the name is reserved"),
        (["drop", "newco", "--yes"], "no tenant answers at 'newco'"),
        (["drop", "acme"], f"{NO_TERMINAL}; give --yes"),
        (["drop", "acme", "globex"], f"{NO_TERMINAL}; give --yes"),
        (["undrop", "acme"], "no tenant 'acme' is in the trash"),
        (["purge", "acme", "--yes"], "no tenant 'acme' is in the trash"),
        (["create", "newco", "--schema", "public"], "'public' cannot be a tenant's schema"),
        (["create", "newco", "--schema", "acme"], "tenant 'acme' exists already (schema acme)"),
    ],
)
def test_command_refuses(run_in_vain: Run, arguments: list[str], words: str) -> None:
    """What cannot be done is refused in one line, and nothing is changed, whatever stdin holds."""
    assert_refused(run_in_vain(*arguments, stdin=b"acme\n"), words)


def test_rename_says_where_the_tenant_is_and_for_how_long_it_was(run: Run, database_url: str) -> None:
    """The new address is the result; until when the old one leads there goes to stderr."""
    assert_misused(run("rename", "acme", "newco", "--redirect-days", "nan"), "no number of days")
    renamed = run("rename", "acme", "newco", "--redirect-days", "2")

    assert (renamed.status, renamed.out) == (0, "renamed acme to newco (schema acme, at newco.localhost)\n")
    assert re.fullmatch(rf"acme leads there until {DAY}\n", renamed.err)
    assert_refused(run("create", "acme"), "'acme' leads to tenant 'newco'", "until")
    run("rename", "newco", "newer", "--redirect-days", "0")
    assert run("rename", "newer", "acme").status == 0
    assert run("rename", "acme", "newco", "--redirect-days", "0").err == ""
    execute(database_url, LONG_AGO)
    assert_refused(run("create", "acme"), "tenant 'newco' exists already (schema acme)", "--schema NAME")
    assert run("create", "acme", "--schema", "acme 2").status == 0


# drop, undrop, purge


def test_drop_says_how_to_bring_the_tenant_back(run: Run, database_url: str) -> None:
    """`--yes` drops at once; the trash shows it, and undrop brings it back."""
    dropped = run("drop", "acme", "--yes")

    assert (dropped.status, dropped.out) == (0, "dropped acme (schema acme)\n")
    assert re.fullmatch(rf"kept in the trash until {DAY}; to bring one back: quart-tenants undrop SLUG\n", dropped.err)
    assert "acme" not in find_slugs(database_url)
    (line,) = run("list", "--trash").out.splitlines()
    assert re.fullmatch(rf"acme\tquart_tenants_trash_\d+\tAcme\t{DAY}T\d\d:\d\d:\d\dZ\tdropped", line)
    assert_refused(run("create", "acme"), "is in the trash", "`undrop acme`", "`purge acme`")
    assert run("undrop", "acme") == Outcome(0, "brought back acme (schema acme, at acme.localhost)\n", "")
    assert "acme" in find_slugs(database_url)


def test_drop_asks_for_the_name_of_one_and_the_number_of_several(answer: Answer, database_url: str) -> None:
    """What is typed must be right, or nothing is dropped."""
    for typed, arguments in (("globex", ["acme"]), ("acme", ["acme", "globex"]), ("3", ["acme", "globex"])):
        refused = answer(typed, "drop", *arguments)
        assert (refused.status, refused.out) == (1, "")
        assert "nothing was done" in refused.err
    assert {"acme", "globex"} <= set(find_slugs(database_url))

    assert answer("acme", "drop", "acme").out == "dropped acme (schema acme)\n"
    assert answer("2", "drop", "globex", "company1").status == 0

    assert find_slugs(database_url) == ["company2"]


def test_undrop_names_what_the_tenant_lacks(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant that slept through a migration is behind: the command names the one that helps."""
    first = get_resource_path("sql/tenant/0001_users_and_data.sql")
    (tmp_path / first.name).write_bytes(first.read_bytes())
    (tmp_path / "0002_more.sql").write_text("CREATE TABLE more (id int)")
    run("suspend", "acme")
    run("drop", "acme", "--yes")
    monkeypatch.setenv("QUART_TENANTS_MIGRATIONS_DIR", str(tmp_path))

    outcome = run("undrop", "acme")

    assert outcome.status == 0
    assert outcome.err == (
        "its tables are at version 0001, and the newest file is 0002_more.sql: "
        "quart-tenants migrate --tenant acme\n"
        "it is suspended, as it was before: quart-tenants resume acme\n"
    )


def test_purge_deletes_the_old_or_the_named(run: Run, answer: Answer, database_url: str) -> None:
    """What is young stays unless it is named; a dry run deletes nothing; without a terminal it asks for --yes."""
    run("drop", "acme", "globex", "company1", "--yes")
    execute(
        database_url,
        "UPDATE quart_tenants.tenants SET dropped_at = dropped_at - interval '31 days' WHERE slug = 'globex'",
    )

    assert_misused(run("purge", "acme", "--older-than", "3"), "not both")
    assert_misused(run("purge", "--older-than", "nan", "--yes"), "no number of days")
    assert re.fullmatch(rf"would purge globex \(dropped {DAY} \d\d:\d\d\)\n", run("purge", "--dry-run").out)
    assert run("purge").out == ""
    assert NO_TERMINAL in run("purge").err
    assert answer("2", "purge").status == 1
    assert len(ask(database_url, list_trash)) == 3
    assert run("purge", "--yes") == Outcome(0, "purged globex\n", "")
    assert run("purge", "--yes") == Outcome(0, "", "nothing in the trash is old enough\n")
    assert answer("acme", "purge", "acme").out == "purged acme\n"
    assert run("purge", "--older-than", "0", "--yes").out == "purged company1\n"
    assert ask(database_url, list_trash) == []


# create-many


def test_list_is_made_into_tenants(run: Run, write_list: Callable[[str], str], database_url: str) -> None:
    """Each line is a tenant; names are quoted as in RFC 4180, and an empty one is the slug."""
    name = write_list('\ufeffslug,name\r\nnew1,"New, ""One"""\r\n\r\nnew2,\r\nnew3,Drei ü\r\n')

    assert run("create-many", name, "--dry-run") == Outcome(0, "would create 3 tenants\n", "")
    assert len(find_slugs(database_url)) == 4
    assert run("create-many", name, "--jobs", "2") == Outcome(0, "created 3 tenants\n", "")

    names = {tenant.slug: tenant.name for tenant in ask(database_url, list_tenants)}
    assert {"new1": 'New, "One"', "new2": "new2", "new3": "Drei ü"}.items() <= names.items()


def test_interrupted_list_is_continued(run: Run, write_list: Callable[[str], str], database_url: str) -> None:
    """`--skip-existing` leaves out who is a tenant already, and nobody else whose name is taken."""
    write_list("slug\nnew1\nnew2\n")
    run("create-many", "new.csv")

    write_list("slug\nnew1\nnew2\nnew3\n")
    assert run("create-many", "new.csv").status == 1
    assert run("create-many", "new.csv", "--skip-existing") == Outcome(
        0, "created 1 tenant\n", "skipped, because they exist already: 2 tenants\n"
    )
    run("drop", "new3", "--yes")
    assert "new.csv: line 4: tenant 'new3' is in the trash" in run("create-many", "new.csv", "--skip-existing").err
    run("undrop", "new3")
    execute(database_url, "CREATE SCHEMA new4")
    run("adopt", "other=new4", "--at-version", "0")
    write_list("slug\nnew4\n")
    assert "tenant 'other' exists already (schema new4)" in run("create-many", "new.csv", "--skip-existing").err


def test_dependents_are_named_and_dropped_if_the_operator_says_so(run: Run, database_url: str) -> None:
    """Without the option nothing changes."""
    execute(database_url, "CREATE VIEW public.report AS SELECT id FROM acme.company_data")

    refused = run("drop", "acme", "--yes")
    assert (refused.status, refused.out) == (1, "")
    assert "view public.report" in refused.err
    assert "--including-dependents" in refused.err
    assert "acme" in run("list").out
    assert run("drop", "acme", "--including-dependents", "--yes").status == 0


def test_dry_purge_names_dependents(run: Run, database_url: str) -> None:
    """What depends on a tenant in the trash would go with it, or stop the purge."""
    assert run("drop", "acme", "--yes").status == 0
    execute(
        database_url,
        "DO $$ BEGIN EXECUTE format('CREATE VIEW public.report AS SELECT id FROM %I.company_data',"
        " (SELECT schema_name FROM quart_tenants.tenants WHERE slug = 'acme')); END $$",
    )

    planned = run("purge", "acme", "--dry-run")
    assert planned.err == "  outside it view public.report depends on it\n"
    refused = run("purge", "acme", "--yes")
    assert (refused.status, refused.out) == (1, "")
    assert "view public.report" in refused.err
    assert run("purge", "acme", "--including-dependents", "--yes").out == "purged acme\n"


def test_failure_in_the_middle_of_a_list_keeps_what_is_made(
    run: Run, write_list: Callable[[str], str], database_url: str
) -> None:
    """What was made stays, each complete; stderr says how many, and how to go on."""
    # Nobody can foresee what a trigger refuses.
    execute(
        database_url,
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON quart_tenants.tenants FOR EACH ROW WHEN (NEW.slug = 'new3')"
        " EXECUTE FUNCTION public.refuse()",
    )
    write_list("slug\nnew1\nnew2\nnew3\nnew4\n")

    outcome = run("create-many", "new.csv", "--jobs", "1")

    assert outcome == Outcome(
        1,
        "",
        "2 of 4 tenants were made; go on with --skip-existing\nError: the database refused a statement: not today\n",
    )
    execute(database_url, "DROP TRIGGER refuse ON quart_tenants.tenants")
    assert run("create-many", "new.csv", "--skip-existing").out == "created 2 tenants\n"


def test_every_mistake_in_a_list_is_named_with_its_line(
    run_in_vain: Run, write_list: Callable[[str | bytes], str], shared_url: str
) -> None:
    """The whole file is checked before anything is made: slugs, names, doubles, and what is taken."""
    write_list(
        "slug,name\n"
        "fine,Fine\n"
        "Not Fine,x\n"
        "acme,Another\n"
        "fine,Again\n"
        'long,"two\nlines"\n'
        "www,Web\n"
        "old,Old\n"
        "more,than,that\n"
    )

    outcome = run_in_vain("create-many", "new.csv")

    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.splitlines() == [
        "new.csv: line 3: 'Not Fine' cannot be a tenant: use 1 to 63 of a-z, 0-9 and -, with no - at either end",
        "new.csv: line 4: tenant 'acme' exists already (schema acme)",
        "new.csv: line 5: 'fine' stands in line 2 already",
        r"new.csv: line 6: 'long': 'two\nlines' cannot be a tenant's name: use 1 to 200 printable characters",
        "new.csv: line 8: 'www' cannot be a tenant: the name is reserved by TENANTS_RESERVED_SLUGS",
        "new.csv: line 9: schema 'old' exists already; the command `adopt old` makes it a tenant as it is",
        "new.csv: line 10: 'more': there are 3 fields where the header has 2",
        "Error: nothing was created: 7 lines are wrong in new.csv",
    ]

    write_list("slug\n" + "Wrong\n" * 30)
    lines = run_in_vain("create-many", "new.csv").err.splitlines()
    assert (len(lines), lines[20]) == (22, "and 10 more")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "line 1: the file is empty"),
        ("slug;name\nfine;Fine\n", "line 1: 'slug;name' is no column; the file begins with slug,name"),
        ("slug,plan\nfine,gold\n", "line 1: 'plan' is no column"),
        ("name\nFine\n", "line 1: there is no column slug"),
        ("slug,slug\nfine,fine\n", "line 1: a column stands there twice"),
        (b"slug,name\nfine,Fine\nf2,Gr\xf6\xdfe\n", "line 3: it is not UTF-8"),
        ('slug,name\nfine,"Fi"ne"\nmore,More\n', "line 2: it is no CSV"),
        ('slug,name\nfine,Fine\nmore,"More\n', "line 3: it is no CSV"),
    ],
)
def test_file_that_is_no_list_is_refused(
    run_in_vain: Run, write_list: Callable[[str | bytes], str], content: str | bytes, words: str
) -> None:
    """What cannot be read makes no tenant, and is told with its line."""
    outcome = run_in_vain("create-many", write_list(content))

    assert (outcome.status, outcome.out) == (1, "")
    assert words in outcome.err

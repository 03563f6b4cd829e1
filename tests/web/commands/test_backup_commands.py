"""The commands backup, restore and create --from in this process: what each prints, asks and refuses."""

import json
from pathlib import Path

import pytest

from tests.web.commands.runs import Run, assert_misused, assert_refused, execute, find_slugs


def test_backup_comes_back_beside_the_living_and_in_its_place(run: Run, database_url: str, tmp_path: Path) -> None:
    """`backup` writes a file; `restore` makes a new tenant of it, or replaces one and says where that went."""
    file = tmp_path / "company1.tar"

    backed_up = run("backup", "company1", "-o", str(file))
    again = run("backup", "company1", "-o", str(file))
    forced = run("backup", "company1", "-o", str(file), "--force")
    restored = run("restore", str(file), "--as", "beside")
    replaced = run("restore", str(file), "--as", "company1", "--replace", "--yes")

    assert (backed_up.status, backed_up.err) == (0, "")
    assert backed_up.out.startswith(f"backed up company1 to {file} (version 0001, ")
    assert_refused(again, str(file), "--force")
    assert forced.status == 0
    assert (restored.out, restored.err) == ("restored beside (schema beside, at beside.localhost)\n", "")
    assert replaced.out == "restored company1 (schema company1, at company1.localhost)\n"
    slug = replaced.err.split()[-1]
    assert replaced.err == f"its old tables are in the trash: quart-tenants undrop {slug}\n"
    assert run("undrop", slug).status == 0
    assert set(find_slugs(database_url)) == {"acme", "beside", "company1", "company2", "globex", slug}


def test_replacing_asks_first(run: Run, database_url: str, tmp_path: Path) -> None:
    """`restore --replace` refuses without a terminal, because it takes what visitors see now off the network."""
    file = tmp_path / "company1.tar"
    run("backup", "company1", "-o", str(file))
    execute(database_url, "CREATE TABLE company1.new (id integer)")

    refused = run("restore", str(file), "--as", "company1", "--replace")

    assert_refused(refused, "restore --replace", "there is no terminal", "--yes")
    execute(database_url, "SELECT FROM company1.new")


def test_tenant_that_is_behind_after_a_restore_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup with older migrations is restored, and the command says what brings the tenant forward."""
    file, folder = tmp_path / "acme.tar", tmp_path / "migrations"
    run("backup", "acme", "-o", str(file))
    folder.mkdir()
    for migration in (Path(__file__).parents[3] / "sql" / "tenant").iterdir():
        (folder / migration.name).write_bytes(migration.read_bytes())
    (folder / "0002_new.sql").write_text("CREATE TABLE new (id integer)")
    monkeypatch.setenv("QUART_TENANTS_MIGRATIONS_DIR", str(folder))

    restored = run("restore", str(file), "--as", "old")

    assert restored.out == "restored old (schema old, at old.localhost)\n"
    assert "version 0001, and the newest file is 0002_new.sql: quart-tenants migrate --tenant old" in restored.err


def test_create_copies_a_template(run: Run, database_url: str) -> None:
    """`create --from` makes a tenant with the template's rows, under a schema of any name."""
    created = run("create", "copy", "--from", "company1", "--name", "A copy", "--schema", "Copied")

    assert (created.out, created.err) == ("created copy (schema Copied, at copy.localhost)\n", "")
    execute(database_url, 'SELECT 1 / count(*) FROM "Copied".company_data')
    assert_refused(run("create", "other", "--from", "nobody"), "no tenant", "'nobody'")
    assert_refused(run("create", "copy", "--from", "company1"), "'copy' exists already")


def test_backup_commands_need_their_options(run: Run, tmp_path: Path) -> None:
    """A file that is no backup, or an option that is missing, changes nothing."""
    file = tmp_path / "noise.tar"
    file.write_bytes(b"noise")

    assert_misused(run("backup", "acme"), "-o")
    assert_misused(run("restore", str(file)), "--as")
    assert_refused(run("restore", str(file), "--as", "new"), str(file), "is no backup of a tenant")
    assert_refused(run("restore", str(tmp_path / "missing"), "--as", "new"), "missing", "No such file")
    assert list(tmp_path.iterdir()) == [file]


def test_backup_of_all_says_what_it_did(run: Run, database_url: str, tmp_path: Path) -> None:
    """`backup --all` writes a file for each tenant and prints one line; a tenant that fails is named, with status 1."""
    folder = tmp_path / "nightly"

    first = run("backup", "--all", "-o", str(folder))
    execute(database_url, "DROP SCHEMA acme CASCADE")
    second = run("backup", "--all", "-o", str(folder), "--keep", "7", "--jobs", "1", "--json")
    third = run("backup", "--all", "-o", str(folder))

    assert (first.status, first.err) == (0, "")
    assert first.out.startswith(f"backed up 4 tenants to {folder} in ")
    assert first.out.endswith("0 failed, 0 not tried, done before an interruption: 0, old files deleted: 0\n")
    told = json.loads(second.out)
    assert (second.status, second.err) == (1, "")
    assert [failure["slug"] for failure in told["failed"]] == ["acme"]
    assert {made["file"] for made in told["made"]} < {path.name for path in folder.iterdir()}
    assert third.status == 1
    assert third.err.startswith("acme was not backed up: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "SLUG or --all"),
        (("acme", "--all"), "SLUG or --all"),
        (("--all", "--force"), "--force"),
        (("acme", "--keep", "7"), "--keep needs --all"),
        (("acme", "--json"), "--json needs --all"),
        (("--all", "--jobs", "0"), "--jobs"),
        (("--all", "--keep", "-1"), "--keep"),
        (("--all", "--keep", "0"), "--keep"),
    ],
)
def test_backup_that_was_typed_wrong_does_nothing(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    """Options that do not belong together are named, and nothing is written."""
    assert_misused(run("backup", *arguments, "-o", str(tmp_path / "new")), words)
    assert list(tmp_path.iterdir()) == []


def test_backup_is_not_written_to_stdout(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-o -` is refused, and does not make a file of that name."""
    monkeypatch.chdir(tmp_path)

    assert_misused(run("backup", "acme", "-o", "-"), "stdout")
    assert list(tmp_path.iterdir()) == []


def test_folder_of_backups_is_one(run: Run, tmp_path: Path) -> None:
    """`backup --all` names a FOLDER that is a file, or that holds something else."""
    file = tmp_path / "file"
    file.write_text("precious")

    assert_refused(run("backup", "--all", "-o", str(file)), str(file), "is no folder")
    assert_refused(run("backup", "--all", "-o", str(tmp_path)), str(tmp_path), "'file'")
    assert file.read_text() == "precious"


def test_restore_lists_a_file_and_a_folder(run: Run, tmp_path: Path) -> None:
    """`restore --list` says whose backup a file is, after a check; for a folder it prints a line for each file."""
    file, folder = tmp_path / "company1.tar", tmp_path / "nightly"
    run("domain", "add", "company1", "shop.company1.test", "--trusted")
    run("backup", "company1", "-o", str(file), "--pipe", "cat")
    run("backup", "--all", "-o", str(folder))

    one, all_of_them = run("restore", str(file), "--list"), run("restore", str(folder), "--list")
    damaged = min(folder.glob("*.tar"))
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    after = run("restore", str(folder), "--list")

    cells = one.out.rstrip("\n").split("\t")
    assert (one.status, cells[0], cells[3], cells[6]) == (0, "company1", "0001", "company1.tar")
    assert one.err == "its dump was piped through cat\ndomain: shop.company1.test\n"
    assert (all_of_them.status, all_of_them.err) == (0, "")
    assert [line.split("\t")[0] for line in all_of_them.out.splitlines()] == ["acme", "globex", "company1", "company2"]
    assert (after.status, len(after.out.splitlines())) == (1, 3)
    assert damaged.name in after.err
    assert_refused(run("restore", str(tmp_path / "missing"), "--list"), "missing", "No such file")
    assert_misused(run("restore", str(file), "--list", "--as", "new"), "--list changes nothing")


def test_restore_tells_what_became_of_the_names(run: Run, database_url: str, tmp_path: Path) -> None:
    """A restored tenant claims free domains again, and the command says how to prove them and what is another's now."""
    file = tmp_path / "company1.tar"
    run("rename", "company1", "zenith")
    for domain in ("shop.company1.test", "www.company1.test"):
        run("domain", "add", "zenith", domain, "--trusted")
    run("backup", "zenith", "-o", str(file))
    run("domain", "remove", "shop.company1.test")

    restored = run("restore", str(file), "--as", "again")

    assert restored.status == 0
    assert "quart-tenants domain add again shop.company1.test\n" in restored.err
    assert "www.company1.test was its name, too, and is not any more: " in restored.err
    assert "company1 was its name, too, and is not any more: 'company1' leads to tenant 'zenith'" in restored.err
    assert "again" in find_slugs(database_url)


def test_program_of_a_pipe_is_checked_first(run: Run, tmp_path: Path) -> None:
    """`--pipe` with a program that is not there is an error before anything is written."""
    assert_refused(run("backup", "acme", "-o", str(tmp_path / "x"), "--pipe", "no-such-program"), "no-such-program")
    assert list(tmp_path.iterdir()) == []

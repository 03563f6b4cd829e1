"""The commands backup, restore and create --from in this process: what each prints, asks and refuses."""

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

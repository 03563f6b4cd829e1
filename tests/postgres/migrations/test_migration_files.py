"""Migration files: read strictly, planned without a database."""

import hashlib
from pathlib import Path

import pytest

from quart_tenants.errors import MigrationFileError
from quart_tenants.postgres.migrations.migration_files import Migration, plan_migrations, read_migrations
from quart_tenants.resources import get_resource_path

FIRST = Migration(1, "0001_first.sql", "SELECT 1")
SECOND = Migration(2, "0002_second.sql", "SELECT 2")
THIRD = Migration(3, "0003_third.sql", "SELECT 3")


def write_files(folder: Path, *names: str) -> None:
    """Write a file of each name that holds its name."""
    for name in names:
        (folder / name).write_text(f"SELECT '{name}'")


def test_files_are_read_in_order(tmp_path: Path) -> None:
    """Versions, names and texts come from the files, in order of number."""
    write_files(tmp_path, "0002_and_b2.sql", "0001_a.sql")

    assert read_migrations(tmp_path) == (
        Migration(1, "0001_a.sql", "SELECT '0001_a.sql'"),
        Migration(2, "0002_and_b2.sql", "SELECT '0002_and_b2.sql'"),
    )


@pytest.mark.parametrize("folder", ["sql/registry", "sql/tenant"])
def test_our_own_files_are_in_order(folder: str) -> None:
    """The files that travel with the package follow their own rules."""
    assert read_migrations(get_resource_path(folder))[0].version == 1


@pytest.mark.parametrize(
    "name",
    [
        "1_first.sql",
        "00001_first.sql",
        "0001-first.sql",
        "0001_First.sql",
        "0001_.sql",
        "0001.sql",
        "0001_first.SQL",
        "0001_first.sql.bak",
        "0001_first.sql~",
        "0001_first.txt",
        "0001_first.sql\n",
        "\u0660\u0660\u0660\u0661_first.sql",  # the number in Arabic-Indic digits
        "README.md",
    ],
)
def test_misnamed_file_is_an_error(tmp_path: Path, name: str) -> None:
    """A file with another name is not skipped: perhaps it was meant to run."""
    write_files(tmp_path, name)

    with pytest.raises(MigrationFileError, match=r"a migration is named like 0001_what_it_does\.sql") as caught:
        read_migrations(tmp_path)

    assert name in str(caught.value)


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    """What a file manager or an editor hides there is no migration."""
    write_files(tmp_path, ".DS_Store", ".0001_first.sql.swp", "0001_first.sql")

    assert [migration.name for migration in read_migrations(tmp_path)] == ["0001_first.sql"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["0002_b.sql"], "0001"),
        (["0000_a.sql"], "0001"),
        (["0001_a.sql", "0003_c.sql"], "0002"),
        (["0001_a.sql", "0001_b.sql"], "0002"),
    ],
)
def test_gap_or_double_names_the_number_that_is_missing(tmp_path: Path, names: list[str], expected: str) -> None:
    """Two branches that took one number, or a lost file, are found at the file where it shows."""
    write_files(tmp_path, *names)

    with pytest.raises(MigrationFileError, match=f"expected number {expected}") as caught:
        read_migrations(tmp_path)

    assert names[-1] in str(caught.value)


def test_empty_folder_is_an_error(tmp_path: Path) -> None:
    """A folder without migrations would make tenants without tables."""
    with pytest.raises(MigrationFileError, match="has no file"):
        read_migrations(tmp_path)


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    """A folder that went away is told as such."""
    with pytest.raises(MigrationFileError, match="cannot be read"):
        read_migrations(tmp_path / "gone")


@pytest.mark.parametrize("content", [b"-- caf\xe9", b"\xff\xfe-\x00-\x00"])
def test_file_that_is_not_utf8_is_an_error(tmp_path: Path, content: bytes) -> None:
    """A file of another encoding is refused, before the database guesses."""
    (tmp_path / "0001_first.sql").write_bytes(content)

    with pytest.raises(MigrationFileError, match=r"0001_first\.sql: cannot be read"):
        read_migrations(tmp_path)


def test_folder_in_place_of_a_file_is_an_error(tmp_path: Path) -> None:
    """A folder with a migration's name is no migration."""
    (tmp_path / "0001_first.sql").mkdir()

    with pytest.raises(MigrationFileError, match="cannot be read"):
        read_migrations(tmp_path)


def test_digest_is_that_of_the_text() -> None:
    """A file is recognised by the sha256 of its text in UTF-8."""
    assert Migration(1, "", "SELECT 'ü'").sha256 == hashlib.sha256("SELECT 'ü'".encode()).hexdigest()


def test_nothing_applied_plans_everything() -> None:
    """A new schema gets every migration, in order."""
    assert plan_migrations((FIRST, SECOND), {}) == (FIRST, SECOND)


def test_plan_is_what_is_missing() -> None:
    """What was applied is left out, wherever it stands."""
    assert plan_migrations((FIRST, SECOND, THIRD), {1: FIRST.sha256, 3: THIRD.sha256}) == (SECOND,)


def test_everything_applied_plans_nothing() -> None:
    """A schema that is up to date stays as it is."""
    assert plan_migrations((FIRST, SECOND), {1: FIRST.sha256, 2: SECOND.sha256}) == ()


def test_newer_version_in_the_database_is_left_alone() -> None:
    """During a deployment the old program meets what the new one applied."""
    assert plan_migrations((FIRST,), {1: FIRST.sha256, 2: SECOND.sha256}) == ()


def test_changed_file_is_an_error() -> None:
    """A file that was edited after it ran is named, even when others are still to run."""
    with pytest.raises(MigrationFileError, match=r"0001_first\.sql was changed after it was applied"):
        plan_migrations((FIRST, SECOND), {1: SECOND.sha256})


@pytest.mark.parametrize("text", ["", " \n", "-- only a comment", "/* nothing\n here */\n-- nor here\n", ";;"])
def test_file_without_a_statement_is_refused(tmp_path: Path, text: str) -> None:
    """A migration that does nothing is a mistake, found when it is parsed."""
    (tmp_path / "0001_nothing.sql").write_text(text)
    (migration,) = read_migrations(tmp_path)

    with pytest.raises(MigrationFileError, match=r"0001_nothing\.sql: holds no statement"):
        _ = migration.script

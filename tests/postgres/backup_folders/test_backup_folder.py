"""What a folder of backups is read as, after anything that may have happened to it, and what is never touched in it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from quart_tenants.errors import BackupFileError
from quart_tenants.postgres.backup_folders.backup_folder import FolderContents, open_folder, read_folder
from quart_tenants.postgres.backup_folders.folder_manifest import MANIFEST, Manifest, Run, write_manifest
from quart_tenants.postgres.backup_folders.stored_backups import check_backup, is_backup_name, name_backup
from quart_tenants.tenant import Slug

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(backup_file: Path, tmp_path: Path) -> Path:
    """A folder with one backup of acme, and a manifest that names it."""
    folder = tmp_path / "backups"
    folder.mkdir(mode=0o700)
    file = folder / name_backup(1, Slug("acme"))
    backup_file.rename(file)
    backup = check_backup(file)
    write_manifest(folder, Manifest("app on server 1", Run(backup.made_at, backup.made_at), [backup]))
    return folder


def find_file(folder: Path) -> Path:
    """Return the backup in *folder*."""
    (file,) = folder.glob("0*.tar")
    return file


def edit(folder: Path) -> None:
    """Change one fact in the manifest by hand."""
    told = json.loads((folder / MANIFEST).read_text())
    told["backups"][0]["slug"] = "globex"
    (folder / MANIFEST).write_text(json.dumps(told))


def delete(folder: Path) -> None:
    """Delete the manifest."""
    (folder / MANIFEST).unlink()


def cut(folder: Path) -> None:
    """Lose the second half of the manifest."""
    file = folder / MANIFEST
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(folder: Path) -> None:
    """Lose all of the manifest but its name."""
    (folder / MANIFEST).write_bytes(b"")


def replace_by_a_list(folder: Path) -> None:
    """Put other JSON into the place of the manifest."""
    (folder / MANIFEST).write_text("[" * 100_000)


def test_layout_of_a_manifest_does_not_count(folder: Path) -> None:
    """A manifest that a program has written anew, with the same facts, is still the manifest."""
    told = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(told, indent=4))

    assert read_folder(folder).notes == []


@pytest.mark.parametrize("damage", [edit, delete, cut, empty, replace_by_a_list])
def test_folder_is_read_from_its_files_if_the_manifest_is_not_to_be_trusted(
    folder: Path, damage: Callable[[Path], None]
) -> None:
    """A manifest that is edited, damaged or gone is noticed, and the files themselves say what they are."""
    before = read_folder(folder)

    damage(folder)
    after = read_folder(folder)

    assert (before.notes, before.database) == ([], "app on server 1")
    assert after.backups == before.backups
    assert (after.database, after.run) == (None, None)
    assert "the files themselves were read instead" in after.notes[0]


def test_manifest_of_a_newer_program_is_refused(folder: Path) -> None:
    """What a newer program has written is not read by guess."""
    told = json.loads((folder / MANIFEST).read_text()) | {"format": 2}
    (folder / MANIFEST).write_text(json.dumps(told))

    with pytest.raises(BackupFileError, match="has format 2"):
        read_folder(folder)


def test_damaged_file_does_not_count_as_good(folder: Path) -> None:
    """A file that was cut off, or that the manifest does not name and is no backup, is told as damaged."""
    file = find_file(folder)
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    stranger = folder / name_backup(2, Slug("globex"))
    stranger.write_bytes(b"")

    contents = read_folder(folder)

    assert contents.backups == []
    assert set(contents.damaged) == {file.name, stranger.name}
    assert "is truncated" in contents.damaged[file.name]


def test_file_that_is_gone_is_told(folder: Path) -> None:
    """A file that the manifest names and that somebody has deleted does not count."""
    file = find_file(folder)
    file.unlink()

    contents = read_folder(folder)

    assert contents.backups == []
    assert file.name in contents.notes[0]


def test_folder_with_strangers_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A folder that holds anything else, such as a home, is not made a folder of backups by mistake."""
    (tmp_path / "letter.txt").write_text("precious")
    tmp_path.chmod(0o700)

    with pytest.raises(BackupFileError, match=r"no backup, such as 'letter\.txt'"), open_folder(tmp_path):
        pass

    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_strangers_in_a_folder_of_backups_are_left_alone(folder: Path) -> None:
    """Only what a run that was killed has left is deleted: neither a hidden file nor a note of somebody's."""
    ours = [folder / f".{find_file(folder).name}.abcd1234", folder / f".{MANIFEST}.abcd1234"]
    theirs = [folder / name for name in (".bashrc.abcd1234", "README", ".0_acme.tar.abcd1234")]
    for file in (*ours, *theirs):
        file.write_text("half")

    with open_folder(folder):
        pass

    assert [file.exists() for file in ours] == [False, False]
    assert [file.exists() for file in theirs] == [True, True, True]


def test_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    """A file in the place of the folder, or a folder whose parent is missing, is named in the error."""
    file = tmp_path / "file"
    file.write_text("precious")

    for path, words in ((file, "is no folder"), (tmp_path / "a" / "b", "No such file")):
        with pytest.raises(BackupFileError, match=words), open_folder(path):
            pass
    assert file.read_text() == "precious"


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="only Linux has it")
def test_folder_that_cannot_be_made_is_named() -> None:
    """Where nobody may make a folder, not even root, the error says so in one line."""
    with (
        pytest.raises(BackupFileError, match=r"^/sys/backups cannot be used for backups: "),
        open_folder(Path("/sys/backups")),
    ):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_is_read_only_is_named(tmp_path: Path) -> None:
    """A folder that may only be read is told before any tenant is backed up."""
    tmp_path.chmod(0o500)

    with pytest.raises(BackupFileError, match="cannot be used for backups: Permission denied"), open_folder(tmp_path):
        pass


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_folder_that_others_may_change_is_refused(tmp_path: Path, mode: int) -> None:
    """Nobody else can put a file of theirs into the place of a backup."""
    tmp_path.chmod(mode)

    with pytest.raises(BackupFileError, match="chmod go-w"), open_folder(tmp_path):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    """A folder that belongs to somebody else is theirs to change."""
    os.chown(tmp_path, 12345, 12345)

    with pytest.raises(BackupFileError, match="another user"), open_folder(tmp_path):
        pass


@pytest.mark.parametrize("slug", ["a", "a-b", "0", "x" * 63])
def test_name_says_number_time_and_slug(slug: str) -> None:
    """Names sort by the number of the tenant, then by time."""
    first, second = name_backup(7, Slug(slug)), name_backup(7, Slug("0"))

    assert is_backup_name(first)
    assert first.startswith("00000007_20")
    assert sorted([second, first, name_backup(10, Slug("a"))])[:2] == [first, second]


@pytest.mark.parametrize("name", ["acme.tar", "00000001_20261128_acme.tar", "00000001_20261128T010203.000000Z_A.tar"])
def test_other_names_are_strangers(name: str) -> None:
    """Only names that a run gives are taken for backups."""
    assert not is_backup_name(name)


def test_empty_folder_has_nothing(tmp_path: Path) -> None:
    """A folder that nobody has written to yet is no folder with a lost manifest."""
    assert read_folder(tmp_path) == FolderContents()

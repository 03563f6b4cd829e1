"""A backup to put into a folder."""

from tests.postgres.backups.conftest import backup_file

__all__ = ["backup_file"]

"""Keep the objects of one tenant out of the sessions of others.

An object that was loaded knows its primary key and not whose row it is. In a session of another tenant it would write
to the row that has the same key there.
"""

from typing import Any

from sqlalchemy import event, inspect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

_OWNER = "quart_tenants_owner"


class OwnedSession(Session):
    """A session that also looks whose an object is before it merges it."""

    def merge(self, instance: Any, **options: Any) -> Any:
        """Copy *instance* into this session, as SQLAlchemy does it.

        Raises:
            InvalidRequestError: It is another tenant's.
        """
        _refuse_foreign(self, instance)
        return super().merge(instance, **options)


def keep_to(session: AsyncSession, owner: str) -> None:
    """Let *session* note whose the objects are that it loads and saves, and refuse those of others."""
    sync = session.sync_session
    sync.info[_OWNER] = owner
    event.listen(sync, "before_attach", _refuse_foreign)
    event.listen(sync, "loaded_as_persistent", _note_owner)
    event.listen(sync, "pending_to_persistent", _note_owner)


def _note_owner(session: Session, instance: Any) -> None:
    inspect(instance).info[_OWNER] = session.info[_OWNER]


def _refuse_foreign(session: Session, instance: Any) -> None:
    own = session.info.get(_OWNER)
    owner = inspect(instance).info.get(_OWNER, own)
    if own is not None and owner != own:
        raise InvalidRequestError(f"this object is a row of {owner!r}, and the session is of {own!r}: load it there")

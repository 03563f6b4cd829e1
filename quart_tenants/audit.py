"""Write lines of facts, above all audit lines: logins, ended sessions, and what administrators change."""

import logging
from collections.abc import Mapping

logger = logging.getLogger("quart_tenants.audit")


class _Facts(dict[str, object]):
    """Facts that read like `tenant='acme' user='ann'` if no formatter shows them as fields."""

    def __str__(self) -> str:
        # As repr: a line break that a visitor typed must not begin a new line of the log.
        return " ".join(f"{name}={value if isinstance(value, int) else str(value)!r}" for name, value in self.items())


def audit(event: str, **facts: object) -> None:
    """Log *event* with its *facts*, at the level INFO, by the logger `quart_tenants.audit`.

    Inside a request the line has its `request_id` and `tenant` by itself. A fact that is None is left out.

    Never log a password, a cookie or a token. Log a username only if such a user exists, because people type their
    password into the wrong field.

    Args:
        event: What happened, in the past tense, for example `login_failed`. Programs search for it.
        facts: To whom and from where, for example `user` and `address`.

    This raises no error.

    Example:
        ```python
        audit("invoice_deleted", user=get_session().user, invoice=7)
        ```
    """
    log_facts(logger, logging.INFO, event, facts)


def log_facts(to: logging.Logger, level: int, event: str, facts: Mapping[str, object]) -> None:
    """Log *event* with those of its *facts* that are not None."""
    known = _Facts((name, value) for name, value in facts.items() if value is not None)
    # The message is for other formatters; ours shows the fields (see web/logs/log_fields.py).
    to.log(level, "%s %s", event, known, extra={"event": event, "facts": known})

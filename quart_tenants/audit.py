"""Write down who did what: logins, ended sessions, what administrators change."""

import logging

logger = logging.getLogger("quart_tenants.audit")


class _Facts(dict[str, object]):
    """Facts that read like `tenant='acme' user='ann'` where nobody formats them as fields."""

    def __str__(self) -> str:
        # As repr: a line break that somebody typed must not begin a line of its own.
        return " ".join(f"{name}={value if isinstance(value, int) else str(value)!r}" for name, value in self.items())


def audit(event: str, **facts: object) -> None:
    """Log *event* with its *facts*, at the level INFO, by the logger `quart_tenants.audit`.

    Inside a request the line has its `request_id` and `tenant` without being told. A fact of None is left out.

    Never a password, a cookie or a token. A username only where such a user exists: people type
    their password into the wrong field.

    Args:
        event: What happened, in the past, such as `login_failed`. Programs look for it.
        facts: To whom and from where, such as `user`, `address`, `tenant` of another one.
    """
    known = _Facts((name, value) for name, value in facts.items() if value is not None)
    # The message is for formatters of other people's; ours shows the fields (see web/logs/log_fields.py).
    logger.info("%s %s", event, known, extra={"event": event, "facts": known})

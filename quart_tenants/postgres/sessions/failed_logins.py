"""Slow down who guesses passwords: count failed logins by account and by address, for all workers together."""

import hashlib
import hmac
import ipaddress
import math
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quart_tenants.errors import TooManyLoginsError
from quart_tenants.settings import Settings

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection

# How long an address is remembered from which an account has logged in.
_KNOWN_SECONDS = 30 * 86400
_PRUNING_CHANCE = 0.01
_V6_NETWORK = 64  # bits; what one customer of a provider has to choose addresses from (RFC 6177)

# $1 tenant, $2 account, $3 account and address, $4 address. The generation is that of `get_generation`, without a
# message of its own. An account that has logged in from this address lately is
# counted together with the address and by nothing else: neither strangers who guess at it from elsewhere hold it up,
# nor those who share the address, such as a whole office behind one router. A failure later than now is from before
# the server's clock was set back, and would hold people up as long as that; a minute is for clocks that are adjusted.
# Not now(), when this block began: who failed after that and need not wait would seem to have to, for a moment.
_LOOK = """
WITH known AS (
    SELECT EXISTS (
        SELECT FROM quart_tenants.failed_logins WHERE tenant_id = $1 AND counted = $3 AND forget_at > now()
    ) AS here
)
SELECT
    (SELECT here FROM known) AS known_here,
    (SELECT coalesce(max(generation), 0) FROM quart_tenants.ended_sessions WHERE session_id = '') AS generation,
    (
        SELECT coalesce(max(extract(epoch FROM f.wait_until - clock_timestamp())), 0)::float8
        FROM quart_tenants.failed_logins AS f, known
        WHERE f.tenant_id = $1 AND f.wait_until > clock_timestamp() AND f.failed_at < now() + interval '1 minute'
            AND f.counted IN ($2, $3, $4) AND (f.counted = $3) = known.here
    ) AS seconds
"""
# $3 how many are free, $4 and $5 the longest wait and the time of forgetting in seconds.
_COUNT_FAILURE = """
INSERT INTO quart_tenants.failed_logins AS f (tenant_id, counted, failures, wait_until, forget_at)
VALUES (
    $1, $2, 1,
    now() + make_interval(secs => CASE WHEN 1 < $3::integer THEN 0 ELSE least(1, $4::float8) END),
    now() + make_interval(secs => $5::float8)
)
ON CONFLICT (tenant_id, counted) DO UPDATE SET (failures, wait_until, failed_at, forget_at) = (
    SELECT
        n.failures,
        now() + make_interval(
            secs => CASE
                WHEN n.failures < $3 THEN 0 ELSE least($4::float8, power(2::float8, least(n.failures - $3, 30)))
            END
        ),
        now(),
        greatest(f.forget_at, now() + make_interval(secs => $5::float8))
    FROM (
        SELECT CASE
            WHEN f.failed_at < now() - make_interval(secs => $5::float8) THEN 1 ELSE f.failures + 1
        END AS failures
    ) AS n
)
"""
_KNOW = """
INSERT INTO quart_tenants.failed_logins (tenant_id, counted, failures, wait_until, forget_at)
VALUES ($1, $2, 0, now(), now() + make_interval(secs => $3))
ON CONFLICT (tenant_id, counted) DO UPDATE
SET failures = 0, wait_until = excluded.wait_until, forget_at = excluded.forget_at
"""
_FORGIVE = "DELETE FROM quart_tenants.failed_logins WHERE tenant_id = $1 AND counted = $2"
# Never waits for a row that somebody counts on: two who did could wait for each other.
_PRUNE = """
DELETE FROM quart_tenants.failed_logins WHERE (tenant_id, counted) IN (
    SELECT f.tenant_id, f.counted FROM quart_tenants.failed_logins AS f
    WHERE f.forget_at < now() LIMIT 10000 FOR UPDATE SKIP LOCKED
)
"""


@dataclass(frozen=True, slots=True)
class LoginCount:
    """What a try to log in is counted under.

    Attributes:
        tenant_id: At which tenant.
        account: Digest of the name that was given.
        account_here: Digest of that and the address.
        address: Digest of the address.
        known_here: Whether the account has logged in from this address lately.
        generation: For a session that begins with this login, from before the password was read.
    """

    tenant_id: int
    account: bytes
    account_here: bytes
    address: bytes
    known_here: bool = False
    generation: int = 0


async def look_at_login(
    connection: "Connection", tenant_id: int, account: str, address: str | None, key: str | bytes
) -> LoginCount:
    """Return what a login is counted under, if it may be tried now.

    Args:
        connection: Inside a block with an empty path.
        tenant_id: At which tenant.
        account: The name that was given.
        address: The visitor's IP address; None where there is none, such as behind a unix socket.
        key: Of the digests, the same on all workers. Without it a dump of the table tells who can guess well what
            was typed, and that may be a password in the wrong field.

    Raises:
        TooManyLoginsError: It has to wait.
    """
    network = _find_network(address)
    count = LoginCount(
        tenant_id,
        _digest(key, "account", account),
        _digest(key, "both", account, network),
        _digest(key, "address", network),
    )
    (row,) = await connection.fetch(_LOOK, tenant_id, count.account, count.account_here, count.address)
    if row["seconds"] > 0:
        raise TooManyLoginsError(math.ceil(row["seconds"]))
    return replace(count, known_here=row["known_here"], generation=row["generation"])


async def count_failure(connection: "Connection", count: LoginCount, settings: Settings) -> None:
    """Count a failed login, so that the next ones have to wait."""
    limits = [(count.account_here, settings.login_attempts)]
    if not count.known_here:
        limits = [(count.account, settings.login_attempts), (count.address, settings.login_attempts_per_address)]
    await connection.executemany(
        _COUNT_FAILURE,
        [
            (count.tenant_id, counted, free, settings.login_max_delay, settings.login_forget_after)
            # In one order for all, or two of them could wait for each other.
            for counted, free in sorted(limits)
        ],
    )
    # Here, because a set-up without a daily `purge` must not grow for ever either.
    if random.random() < _PRUNING_CHANCE:  # noqa: S311
        await prune_failed_logins(connection)


async def count_success(connection: "Connection", count: LoginCount) -> None:
    """Forgive the account, and know the address from now on. The address itself is not forgiven: it may guess, too."""
    if not count.known_here:
        await connection.execute(_FORGIVE, count.tenant_id, count.account)
    await connection.execute(_KNOW, count.tenant_id, count.account_here, float(_KNOWN_SECONDS))


async def prune_failed_logins(connection: "Connection") -> None:
    """Delete what serves nobody any more."""
    await connection.execute(_PRUNE)


def _find_network(address: str | None) -> str:
    """Return *address*, or of IPv6 its network: there everybody has more addresses than can be counted."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed.packed, _V6_NETWORK), strict=False))
    return str(parsed)


def _digest(key: str | bytes, kind: str, *parts: str) -> bytes:
    digest = hmac.new(key.encode() if isinstance(key, str) else key, kind.encode(), hashlib.sha256)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        # The length before each: no two lists look the same.
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.digest()

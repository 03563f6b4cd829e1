"""Slow down whoever guesses passwords: count failed logins by account and by address, for all workers together."""

import hashlib
import hmac
import ipaddress
import math
import random
from dataclasses import dataclass

from quart_tenants.connection import Connection
from quart_tenants.errors import TooManyLoginsError
from quart_tenants.settings import Settings

# How long the address of a successful login is remembered for the account.
_KNOWN_SECONDS = 30 * 86400
_PRUNING_CHANCE = 0.01
_V6_NETWORK = 64  # bits; one customer of a provider may use all addresses of such a network (RFC 6177)

# $1 tenant, $2 account, $3 account and address, $4 address. The column generation is the answer of `get_generation`,
# without another message.
#
# If an account has logged in from this address lately, only the pair of both is counted. Then strangers who guess from
# elsewhere do not delay the user, and nor do other users of the address, such as an office behind one router.
# A failure in the future was written before the server's clock was set back, and is left out; one minute is allowed for
# clocks that are adjusted. The query uses clock_timestamp() because now() is the start of the block: a user whose wait
# ended since then would have to wait again.
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
# $3 how many failures need no wait, $4 the longest wait and $5 the time after which failures are forgotten, in seconds.
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
# Never waits for a row that another transaction writes: two that waited could wait for each other.
_PRUNE = """
DELETE FROM quart_tenants.failed_logins WHERE (tenant_id, counted) IN (
    SELECT f.tenant_id, f.counted FROM quart_tenants.failed_logins AS f
    WHERE f.forget_at < now() LIMIT 10000 FOR UPDATE SKIP LOCKED
)
"""


@dataclass(frozen=True, slots=True)
class LoginCount:
    """The keys under which one login is counted.

    Attributes:
        tenant_id: The number of the tenant.
        account: The digest of the name that was typed.
        account_here: The digest of that name and the address.
        address: The digest of the address.
        known_here: Whether the account has logged in from this address lately.
        generation: The session counter from before the password was read, for a session that begins here.
    """

    tenant_id: int
    account: bytes
    account_here: bytes
    address: bytes
    known_here: bool
    generation: int


async def look_at_login(
    connection: Connection, tenant_id: int, account: str, address: str | None, key: str | bytes
) -> LoginCount:
    """Return the keys under which a login is counted, if it may be tried now.

    Args:
        connection: Inside a block with an empty path.
        tenant_id: The number of the tenant.
        account: The name that was typed.
        address: The visitor's IP address; None if there is none, for example behind a unix socket.
        key: The key of the digests, the same on all workers. Without a key, whoever has a dump of the table could
            guess what was typed, and that may be a password in the wrong field.

    Raises:
        TooManyLoginsError: The login must wait.
    """
    network = _find_network(address)
    digests = (
        _digest(key, "account", account),
        _digest(key, "both", account, network),
        _digest(key, "address", network),
    )
    (row,) = await connection.fetch(_LOOK, tenant_id, *digests)
    if row["seconds"] > 0:
        raise TooManyLoginsError(math.ceil(row["seconds"]))
    return LoginCount(tenant_id, *digests, row["known_here"], row["generation"])


async def count_failure(connection: Connection, count: LoginCount, settings: Settings) -> None:
    """Count a failed login, so that later ones must wait."""
    limits = [(count.account_here, settings.login_attempts)]
    if not count.known_here:
        limits = [(count.account, settings.login_attempts), (count.address, settings.login_attempts_per_address)]
    await connection.executemany(
        _COUNT_FAILURE,
        [
            (count.tenant_id, counted, free, settings.login_max_delay, settings.login_forget_after)
            # All workers use the same order; otherwise two of them could wait for each other.
            for counted, free in sorted(limits)
        ],
    )
    # A set-up without a daily `purge` must not grow for ever.
    if random.random() < _PRUNING_CHANCE:  # noqa: S311
        await prune_failed_logins(connection)


async def count_success(connection: Connection, count: LoginCount) -> None:
    """Forget the failures of the account, and remember the address for it. Failures of the address itself stay."""
    if not count.known_here:
        await connection.execute(_FORGIVE, count.tenant_id, count.account)
    await connection.execute(_KNOW, count.tenant_id, count.account_here, float(_KNOWN_SECONDS))


async def prune_failed_logins(connection: Connection) -> None:
    """Delete rows whose time is over."""
    await connection.execute(_PRUNE)


def _find_network(address: str | None) -> str:
    """Return *address*, or the network of an IPv6 address, because there one visitor has countless addresses."""
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
        # The length comes before each part, so that two different lists have different digests.
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.digest()

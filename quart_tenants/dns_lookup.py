"""Ask DNS for text records."""

from quart_tenants.errors import DnsUnavailableError
from quart_tenants.settings import Settings


async def find_text_records(name: str, settings: Settings, *, timeout: float = 5.0) -> list[str]:  # noqa: ASYNC109
    """Return the TXT records at *name*; an empty list if there are none or there is no such name.

    Args:
        name: Without a dot at its end.
        settings: With the DNS servers to ask.
        timeout: Seconds for all servers and tries together.

    Raises:
        DnsUnavailableError: The servers did not answer in that time, or gave an error.
    """
    # Imported here, because loading it takes long and a worker does not need it.
    import dns.asyncresolver
    import dns.exception
    import dns.nameserver
    import dns.resolver

    servers = [dns.nameserver.Do53Nameserver(server.address, server.port) for server in settings.dns_servers]
    try:
        # Without configured servers it uses those of the system.
        resolver = dns.asyncresolver.Resolver(configure=not servers)
        if servers:
            resolver.nameservers = servers
        # Otherwise a query for "shop" would also try "shop.our-network.example".
        answer = await resolver.resolve(name, "TXT", search=False, lifetime=timeout)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []
    except (dns.exception.DNSException, OSError) as error:
        raise DnsUnavailableError(name, str(error) or type(error).__name__) from error
    # A record longer than 255 bytes comes in pieces.
    return [b"".join(record.strings).decode("utf-8", "replace") for record in answer]

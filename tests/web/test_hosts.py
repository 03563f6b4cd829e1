"""Hosts: exactly one label below the domain is a tenant; what is not exactly that is nobody's."""

import string
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quart_tenants.errors import InvalidSlugError
from quart_tenants.tenant import Slug, parse_slug
from quart_tenants.web import hosts
from quart_tenants.web.hosts import NamedHost, read_host

pytestmark = pytest.mark.slow

DOMAIN = "example.com"

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
domains = st.lists(labels, min_size=1, max_size=3).map(".".join)
ends = st.sampled_from(["", "."])
ports = st.just("") | st.integers(0, 65535).map(":{}".format)
# Near misses: a real host with one character put in, taken out or exchanged.
edits = st.tuples(
    st.integers(0, 40), st.integers(0, 1), st.text(max_size=1) | st.sampled_from([*".:-_@/[]%\n\0 k\u212a"])
)


def is_unknown(host: str, domain: str) -> bool:
    """Return whether *host* is neither *domain* nor a tenant's below it."""
    named = read_host(host, domain)
    return named.slug is None and not named.is_apex


@pytest.mark.parametrize(
    "host",
    [
        "acme.example.com",
        "acme.example.com:80",
        "acme.example.com:5000",
        "acme.example.com:65535",
        "acme.example.com.",
        "acme.example.com.:443",
        "ACME.Example.COM",
        "Acme.EXAMPLE.com.:8000",
    ],
)
def test_one_label_below_the_domain_is_a_tenant(host: str) -> None:
    """Case, port and one trailing dot make no difference."""
    assert read_host(host, DOMAIN) == NamedHost(slug=Slug("acme"))


@pytest.mark.parametrize("host", ["example.com", "EXAMPLE.com", "example.com.", "example.com:5000", "example.com.:443"])
def test_domain_itself_is_no_tenant(host: str) -> None:
    """The domain is the public site, on any port and in any case."""
    assert read_host(host, DOMAIN) == NamedHost(is_apex=True)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        ":",
        ":5000",
        "com",
        "acme",
        "example.org",
        "acme.example.org",
        "a.b.example.com",
        "www.acme.example.com",
        "acme.example.com.evil.org",
        "example.com.evil.org",
        "evilexample.com",
        "acme-example.com",
        "example.comevil",
        "acme.example.comm",
        "acme.example.com..",
        "acme..example.com",
        ".example.com",
        "..example.com",
        "-acme.example.com",
        "acme-.example.com",
        "a_b.example.com",
        "*.example.com",
        f"{'a' * 64}.example.com",
        "acme.example.com:",
        "acme.example.com:http",
        "acme.example.com:-1",
        "acme.example.com:5000:5000",
        "acme.example.com:123456",
        "acme.example.com:80.",
        "127.0.0.1",
        "127.0.0.1:5000",
        "[::1]",
        "[::1]:5000",
        "::1",
        "[acme.example.com]",
        "user@acme.example.com",
        "http://acme.example.com",
        "acme.example.com/",
        "acme.example.com?",
        "acme.example.com,globex.example.com",
        " acme.example.com",
        "acme.example.com ",
        "acme .example.com",
        "acme.example.com\n",
        "acme.example.com:80\n",
        "example.com\n",
        "\nacme.example.com",
        "acme\0.example.com",
        "acme.example.com\0",
        "acme.example.com\r\nX: y",
        "acme%2eexample.com",
        "acme\u3002example.com",  # an ideographic full stop, a dot to IDNA
        "acme.example\uff0ecom",  # a full-width full stop
        "\uff41cme.example.com",  # a full-width a
        "acme\u00ad.example.com",  # a soft hyphen, nothing to IDNA
        "\u212aelvin.example.com",  # the Kelvin sign, whose lower case is the letter k
        "acme.example.com:\u0665\u0660\u0660\u0660",  # a port in Arabic-Indic digits
        "acme\u0661.example.com",
        "acme.\u017fample.com",
        "\ud800.example.com",
    ],
)
def test_any_other_host_is_unknown(host: str) -> None:
    """A host outside the domain, deeper than one label or malformed is nobody's."""
    assert is_unknown(host, DOMAIN)


@pytest.mark.parametrize(
    "host", ["company1.localhost.evil.org", "xlocalhost", "company1.xlocalhost", "company1localhost"]
)
def test_suffix_tricks_are_unknown(host: str) -> None:
    """Only a dot parts a tenant from the domain, and nothing follows it."""
    assert is_unknown(host, "localhost")


@pytest.mark.parametrize("host", ["axb", "acme.axb", "acmexa.b", "a.bx"])
def test_dot_of_the_domain_is_a_dot(host: str) -> None:
    """No character of the domain means anything but itself."""
    assert is_unknown(host, "a.b")


def test_host_longer_than_any_name_is_refused_at_once() -> None:
    """A host of a megabyte costs no more than a look."""
    assert is_unknown("a-" * 500_000 + ".example.com", DOMAIN)


@given(labels, domains, ends, ports, st.randoms(use_true_random=False))
def test_tenants_host_is_found_however_it_is_written(
    label: str, domain: str, end: str, port: str, random: Random
) -> None:
    """Any slug below any domain is found in any mixture of cases."""
    host = "".join(random.choice((c.lower(), c.upper())) for c in f"{label}.{domain}{end}") + port

    assert read_host(host, domain).slug == label


@given(domains, ends, ports)
def test_any_domain_is_its_own_site(domain: str, end: str, port: str) -> None:
    """No domain is taken for a tenant of itself."""
    assert read_host(domain + end + port, domain) == NamedHost(is_apex=True)


@given(labels, ends, ports, edits)
@example("k", "", "", (0, 1, "\u212a"))
@example("acme", "", "", (16, 0, "\n"))
def test_whatever_is_accepted_says_exactly_that(label: str, end: str, port: str, edit: tuple[int, int, str]) -> None:
    """An accepted host, read by plain string operations, is one ASCII label, the domain, a dot and a port at most."""
    position, taken, put = edit
    host = f"{label}.{DOMAIN}{end}{port}"
    host = host[:position] + put + host[position + taken :]
    if is_unknown(host, DOMAIN):
        return

    slug = read_host(host, DOMAIN).slug
    assert host.isascii()
    name, colon, digits = host.lower().partition(":")
    assert not colon or (set(digits) <= set(string.digits) and len(digits) <= 5)
    assert name.removesuffix(".") == (DOMAIN if slug is None else f"{slug}.{DOMAIN}")


@given(st.text(), domains)
def test_any_text_is_a_slug_or_nothing_or_unknown(host: str, domain: str) -> None:
    """No Host header raises anything."""
    slug = read_host(host, domain).slug

    assert slug is None or host.lower().startswith(f"{slug}.")


@given(labels)
def test_hosts_and_slugs_agree(label: str) -> None:
    """Every slug that can be created has a host."""
    try:
        slug = parse_slug(label)
    except InvalidSlugError:
        return

    assert read_host(f"{slug}.{DOMAIN}", DOMAIN).slug == slug


@given(
    host=st.text(alphabet="aA1-.:0xn\u212a \n", max_size=30)
    | st.builds("{}.{}{}{}".format, labels, domains | st.just(DOMAIN), ends, ports)
)
def test_host_reads_the_same_again(host: str) -> None:
    """What is remembered of a host is what parsing it says, the first time and later."""
    parsed = hosts._read_host(host, DOMAIN)

    assert [read_host(host, DOMAIN) for _ in range(2)] == [parsed, parsed]


def test_strangers_fill_no_memory() -> None:
    """Whatever hosts somebody makes up, a worker caches a bounded number of short ones."""
    cached = hosts._read_host_cached
    cached.cache_clear()

    for number in range(hosts._CACHE_SIZE + 10):
        read_host(f"x{number}.{DOMAIN}", DOMAIN)
    full = cached.cache_info().currsize
    cached.cache_clear()
    read_host("x" * 10_000, DOMAIN)

    assert full == hosts._CACHE_SIZE
    assert cached.cache_info().currsize == 0

"""Session cookies: their keys, and what a worker remembers of them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous.signer import HMACAlgorithm
from quart import Quart

from quart_tenants.web.answers.problems import answer_tenant_error
from quart_tenants.web.sessions.session_cookies import SessionCookies, SignedSession, issue_session
from quart_tenants.web.sessions.session_interface import TenantSessionInterface
from quart_tenants.web.state import TenantState

OLD_KEY, NEW_KEY, OTHER_KEY = "an old key 0123456789", "a new key 0123456789", "another key 0123456789"
REMEMBERED = 4096
ADA = issue_session(1, "ada", 0, 3600)


class NaiveCookies(SessionCookies):
    """For the negative controls: remembers what any text said, valid or not, for ever, and hands out just that."""

    def __init__(self, secret_key: str) -> None:
        super().__init__(secret_key)
        self.remembered: dict[str, SignedSession | None] = {}

    def _find_signed(self, cookie: str) -> SignedSession | None:
        if cookie not in self.remembered:
            self.remembered[cookie] = super()._find_signed(cookie)
        return self.remembered[cookie]


class CountingAlgorithm(HMACAlgorithm):
    """The same, and counts."""

    checks = 0

    def verify_signature(self, key: bytes, value: bytes, sig: bytes) -> bool:
        """Count, and check."""
        self.checks += 1
        return super().verify_signature(key, value, sig)


def count_checks(cookies: SessionCookies) -> CountingAlgorithm:
    """Return what counts how often *cookies* checks a signature with a key from now on."""
    counting = CountingAlgorithm(cookies._signer.digest_method)
    cookies._signer.algorithm = counting
    return counting


def read(cookies: SessionCookies, *sent: str) -> list[str]:
    """Return whose sessions *sent* are."""
    return [session.issued.username for session in cookies.list_signed(sent)]


def test_key_is_replaced_without_logging_anybody_out() -> None:
    """With the old key as a fallback its cookies are read, and new ones are signed with the new key alone."""
    old, new = SessionCookies(OLD_KEY), SessionCookies(NEW_KEY)
    both = SessionCookies(NEW_KEY, [OTHER_KEY.encode(), OLD_KEY])

    assert read(both, old.sign(ADA)) == ["ada"]
    assert read(both, SessionCookies(OTHER_KEY).sign(ADA)) == ["ada"]
    assert read(new, both.sign(ADA)) == ["ada"]
    assert read(old, both.sign(ADA)) == []


def test_cookie_of_a_removed_key_is_no_session() -> None:
    """Once the old key is no fallback any more, what it signed is worthless: also in a worker that has read it."""
    app = Quart(__name__)
    app.config.update(SECRET_KEY=NEW_KEY, SECRET_KEY_FALLBACKS=[OLD_KEY])
    interface = TenantSessionInterface(TenantState(), answer_tenant_error)
    cookie = SessionCookies(OLD_KEY).sign(ADA)
    assert read(interface._get_cookies(app), cookie) == ["ada"]

    app.config["SECRET_KEY_FALLBACKS"] = []

    assert read(interface._get_cookies(app), cookie) == []


def test_signature_is_checked_once() -> None:
    """A cookie that this worker has verified costs no signature the next time; a forged one does each time."""
    cookies = SessionCookies(NEW_KEY)
    cookie, forged = cookies.sign(ADA), SessionCookies(OTHER_KEY).sign(ADA)
    counting = count_checks(cookies)

    assert [read(cookies, cookie) for _ in range(100)] == [["ada"]] * 100
    assert counting.checks == 1

    assert [read(cookies, forged) for _ in range(3)] == [[]] * 3
    assert counting.checks == 1 + 3


def test_what_is_remembered_is_this_very_cookie() -> None:
    """Whoever changes a cookie that was verified before has to be verified anew."""
    cookies = SessionCookies(NEW_KEY)
    cookie = cookies.sign(ADA)
    assert read(cookies, cookie) == ["ada"]

    # The last four: what is no base64 would be left out by a lenient reader.
    changed = (cookie.swapcase(), cookie[1:], cookie[:-10], f"x{cookie}", f"{cookie}.{cookie}")
    for tampered in (*changed, f"{cookie}&", f"{cookie}=", f"{cookie}\n", f"{cookie}\xe9"):
        assert read(cookies, tampered) == []


def change_what_was_read(cookies: SessionCookies) -> object:
    """Change nested content of a session, and return what the next request reads."""
    cookie = cookies.sign(replace(ADA, content={"cart": ["apple"]}))
    for _ in range(2):
        (session,) = cookies.list_signed([cookie])
        session.content["cart"].append("pear")
    (session,) = cookies.list_signed([cookie])
    return session.content["cart"]


def test_what_an_app_changes_reaches_no_other_request() -> None:
    """What was read from a cookie is a request's own, down to the lists in it."""
    assert change_what_was_read(SessionCookies(NEW_KEY)) == ["apple"]


def test_plain_content_is_remembered_and_nobody_can_change_it() -> None:
    """Texts and numbers are parsed once, and what was read of them is no dict that one request could write into."""
    cookies = SessionCookies(NEW_KEY)
    cookie = cookies.sign(replace(ADA, content={"theme": "dark", "visits": 3, "beta": None}))

    (first,) = cookies.list_signed([cookie])
    (second,) = cookies.list_signed([cookie])

    assert first is second
    assert dict(first.content) == {"theme": "dark", "visits": 3, "beta": None}
    with pytest.raises(TypeError):
        first.content["theme"] = "light"  # type: ignore[index]


def test_naive_memory_hands_out_what_an_app_has_changed() -> None:
    """Negative control: a memory of what was parsed carries one request's changes into the next."""
    assert change_what_was_read(NaiveCookies(NEW_KEY)) == ["apple", "pear", "pear"]


def show_forged(cookies: SessionCookies) -> None:
    """Show many cookies that somebody else has signed, or nobody."""
    forger = SessionCookies(OTHER_KEY)
    for number in range(100):
        forged = forger.sign(replace(ADA, content={"n": number}))
        assert read(cookies, forged, f"rubbish {number}", "x" * number, f"{forged}.x") == []


def test_strangers_fill_no_memory() -> None:
    """A worker remembers nothing of a cookie that we have not signed."""
    cookies = SessionCookies(NEW_KEY)
    cookie = cookies.sign(ADA)
    assert read(cookies, cookie) == ["ada"]

    show_forged(cookies)

    assert list(cookies._verified) == [cookie]


def test_strangers_fill_a_naive_memory() -> None:
    """Negative control: a memory of every answer grows by whatever is sent."""
    cookies = NaiveCookies(NEW_KEY)

    show_forged(cookies)

    assert len(cookies.remembered) == 400


def test_memory_stays_bounded() -> None:
    """However many sessions there are, a worker remembers some thousands of short ones; it reads the others, too."""
    cookies = SessionCookies(NEW_KEY)
    for number in range(REMEMBERED + 100):
        cookie = cookies.sign(replace(ADA, content={"n": number}))
        assert read(cookies, cookie) == ["ada"]
    long_cookie = cookies.sign(replace(ADA, content={"random": "".join(map(chr, range(0x4E00, 0x4E00 + 600)))}))
    assert 1024 < len(long_cookie) < 4096
    assert read(cookies, long_cookie) == ["ada"]

    assert len(cookies._verified) == REMEMBERED
    assert sum(map(len, cookies._verified)) < REMEMBERED * 1024


def test_what_is_no_cookie_of_a_browser_is_not_looked_at() -> None:
    """More than four of the name, and what is longer than browsers keep, cost no signature."""
    cookies = SessionCookies(NEW_KEY)
    cookie = cookies.sign(ADA)
    counting = count_checks(cookies)

    assert read(cookies, *[cookie] * 5) == []
    assert read(cookies, cookies.sign(replace(ADA, content={"x": [str(n**9) for n in range(1000)]}))) == []
    assert counting.checks == 0


@given(st.text() | st.binary().map(lambda sent: sent.decode("latin-1")))
def test_any_other_text_is_no_session(sent: str) -> None:
    """Whatever is sent in the place of a cookie is no session and no error."""
    assert read(SessionCookies(NEW_KEY), sent, f"{sent}.{sent}.{sent}", f".{sent}") == []

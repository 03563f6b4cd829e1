"""The commands about users who are there already: password, logout, suspend and resume."""

import asyncio

import pytest

from quart_tenants.app import create_app
from tests.support.processes import SECRET_KEY
from tests.web.commands.runs import NO_TERMINAL, Outcome, Run, assert_refused

pytestmark = pytest.mark.slow

HOST = "company1.localhost"


def visit(database_url: str, *passwords: str, cookies: tuple[str, ...] = ()) -> tuple[list[int], list[int], list[str]]:
    """Visit company1, as a worker that has just started serves it.

    Returns:
        What the logins of user_1 with *passwords* are answered, what the data's page answers to *cookies*, and
        the cookies of the logins.
    """

    async def ask() -> tuple[list[int], list[int], list[str]]:
        app = create_app({"TENANTS_DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY})
        async with app.test_app():
            client = app.test_client(use_cookies=False)
            served = [await client.get("/data", headers={"Host": HOST, "Cookie": cookie}) for cookie in cookies]
            logins = [
                await client.post("/login", headers={"Host": HOST}, form={"uname": "user_1", "passwd": password})
                for password in passwords
            ]
        new_cookies = [login.headers.get("Set-Cookie", "").partition(";")[0] for login in logins]
        return [login.status_code for login in logins], [answer.status_code for answer in served], new_cookies

    return asyncio.run(ask())


def test_suspended_user_cannot_log_in_until_resumed(run: Run, database_url: str) -> None:
    """Suspending ends all sessions and refuses the right password as if it were wrong; resuming brings that back."""
    _, _, (cookie,) = visit(database_url, "foo")

    assert run("user", "suspend", "company1", "user_1") == Outcome(0, "suspended user_1 at company1\n", "")
    assert run("user", "suspend", "company1", "user_1").status == 0
    logins, served, _ = visit(database_url, "foo", "!", "", cookies=(cookie,))
    assert (logins, served) == ([401, 401, 401], [401])

    assert run("user", "resume", "company1", "user_1") == Outcome(0, "resumed user_1 at company1\n", "")
    assert run("user", "resume", "company1", "user_1").status == 0
    logins, served, _ = visit(database_url, "foo", cookies=(cookie,))
    assert (logins, served) == ([200], [401])


def test_user_is_logged_out(run: Run, database_url: str) -> None:
    """All sessions that began before end, and the user may log in again."""
    _, _, cookies = visit(database_url, "foo", "foo")

    outcome = run("user", "logout", "company1", "user_1")
    logins, served, _ = visit(database_url, "foo", cookies=tuple(cookies))

    assert outcome == Outcome(0, "logged out user_1 at company1\n", "")
    assert (logins, served) == ([200], [401, 401])


def test_user_gets_a_new_password(run: Run, database_url: str) -> None:
    """The old one is wrong, all sessions end, and who was suspended is so no more."""
    _, _, (cookie,) = visit(database_url, "foo")
    run("user", "suspend", "company1", "user_1")

    outcome = run("user", "password", "company1", "user_1", "--password-stdin", stdin=b"sesame\n")
    logins, served, _ = visit(database_url, "foo", "sesame", cookies=(cookie,))

    told = "changed the password of user_1 at company1, who was suspended and may log in again\n"
    assert outcome == Outcome(0, told, "")
    assert (logins, served) == ([401, 200], [401])
    again = run("user", "password", "company1", "user_1", "--password-stdin", stdin=b"sesame\n")
    assert again == Outcome(0, "changed the password of user_1 at company1\n", "")


@pytest.mark.parametrize("command", ["password", "logout", "suspend", "resume"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["company1", "user_2"], ("'company1'", "'user_2'")),
        (["company1", "USER_1"], ("'USER_1'",)),
        (["company1", ""], ("''",)),
        (["company1", "a\udcff"], ("'a\\udcff'",)),
        (["newco", "user_1"], ("no tenant answers at 'newco'",)),
    ],
    ids=["of another tenant", "case", "empty", "no text", "no tenant"],
)
def test_unknown_user_is_refused(run_in_vain: Run, command: str, arguments: list[str], words: tuple[str, ...]) -> None:
    """Whom a tenant does not have is named, with status 1, and nobody is asked for a password first."""
    assert_refused(run_in_vain("user", command, *arguments), *words)


@pytest.mark.parametrize(
    ("options", "stdin", "words"),
    [
        ([], b"sesame\n", NO_TERMINAL),
        (["--password-stdin"], b"", "the password is empty"),
        (["--password-stdin"], b"x" * 4097, "at most 4096 characters"),
        (["--password-stdin"], b"sesame\0\n", "the password is no text"),
    ],
    ids=["no terminal", "empty", "too long", "no text"],
)
def test_bad_new_password_is_refused(run_in_vain: Run, options: list[str], stdin: bytes, words: str) -> None:
    """What cannot be stored is refused with the reason, and the password is not repeated."""
    outcome = run_in_vain("user", "password", "company1", "user_1", *options, stdin=stdin)

    assert_refused(outcome, words)
    assert "sesame" not in outcome.err

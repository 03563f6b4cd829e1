"""The documentation: links lead somewhere, public names have an entry, errors a remedy, drawings say what is so."""

import contextlib
import importlib
import inspect
import re
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import quart_tenants
import quart_tenants.console
import quart_tenants.sqlalchemy
import quart_tenants.testing
from quart_tenants import admin, errors
from quart_tenants.admin import Database, Settings, Slug, parse_slug
from quart_tenants.errors import TenantError, UnknownTenantError

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
CODES = [
    error.code
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, TenantError) and error is not TenantError
]
REFERENCE = {
    quart_tenants: "app.md",
    admin: "admin.md",
    quart_tenants.console: "console.md",
    quart_tenants.testing: "testing.md",
    quart_tenants.sqlalchemy: "sqlalchemy.md",
}

MOST_BYTES_OF_A_PICTURE = 80_000


def name_page(page: Path) -> str:
    """Return how a test's id names *page*."""
    return page.relative_to(ROOT).as_posix()


# Pictures


def test_pictures_of_the_manual_are_small() -> None:
    """Each picture that a page of docs/ or the README shows is there, and small enough for a repository."""
    pages = ("docs/reference-app.md", "docs/console.md", "README.md")
    text = "".join((ROOT / page).read_text() for page in pages)
    pictures = sorted((DOCS / "pages").glob("*.png"))

    assert pictures
    assert [picture.name for picture in pictures if f"pages/{picture.name}" not in text] == []
    assert [picture.name for picture in pictures if picture.stat().st_size > MOST_BYTES_OF_A_PICTURE] == []


# Links


def read_prose(text: str) -> str:
    """Return *text* without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def list_anchors(text: str) -> set[str]:
    """Return the anchors of the headings in *text*, by the rule that GitHub and the site have in common."""
    titles = re.findall(r"^#+ (.+)$", read_prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def find_broken_links(page: Path, text: str) -> list[str]:
    """Return the links in *text*, which stands in *page*, that lead to no file or to no heading."""
    broken = []
    for link in re.findall(
        r"(?:\]\(|^\[[^]\n]+\]: +|(?:href|src)=\")([^)\s\"]+)", re.sub(r"`[^`\n]*`", "", read_prose(text)), re.MULTILINE
    ):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        # The site holds docs/ alone, so a page of it cannot lead out.
        leads = target.exists() and (DOCS not in page.parents or DOCS in target.resolve().parents)
        if leads and anchor:
            leads = anchor in list_anchors(target.read_text(encoding="utf-8") if name else text)
        if not leads:
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_links_lead_somewhere(page: Path) -> None:
    """Each link within the repository leads to a file, and each anchor to a heading. Others are not tried."""
    assert find_broken_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "link", ["nowhere.md", "settings.md#nowhere", "#nowhere", "../hypercorn.toml", "api/nowhere.md#the-extension"]
)
def test_broken_link_is_found(link: str) -> None:
    """Negative control: a missing page, a missing heading and a way out of the site are seen."""
    for way in (f"See [there]({link}).", f"See [there].\n\n[there]: {link}", f'See <a href="{link}">there</a>.'):
        assert find_broken_links(DOCS / "index.md", f"# Start\n\n{way}\n") == [link]


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=name_page)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """A page of the site names files of the repository in backticks, and they are there."""
    named = re.findall(r"`((?:examples|benchmarks|tests)/[\w./-]+\.\w+)`", page.read_text(encoding="utf-8"))

    assert [name for name in named if not (ROOT / name).is_file()] == []


def list_pages(entries: object) -> Iterator[str]:
    """Yield the pages in a part of the navigation."""
    if isinstance(entries, str):
        yield entries
    elif isinstance(entries, dict):
        for entry in entries.values():
            yield from list_pages(entry)
    elif isinstance(entries, list):
        for entry in entries:
            yield from list_pages(entry)


def test_navigation_has_every_page_once() -> None:
    """Each page of docs/ is in the navigation of the site, and nothing else is."""
    project = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]

    assert sorted(list_pages(project["nav"])) == sorted(
        page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")
    )


# The reference


@pytest.mark.parametrize("module", REFERENCE, ids=lambda module: module.__name__)
def test_public_names_have_an_entry(module: ModuleType) -> None:
    """The reference has every public name of each module, and no name of it that is gone."""
    text = (DOCS / "api" / REFERENCE[module]).read_text(encoding="utf-8")
    entries = re.findall(rf"^::: {re.escape(module.__name__)}\.(\w+)$", text, re.MULTILINE)

    assert sorted(entries) == sorted(module.__all__)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=name_page)
def test_names_that_a_page_imports_exist(page: Path) -> None:
    """What an example of a page imports from the package is there."""
    text = page.read_text(encoding="utf-8")
    imports = re.findall(r"^ *from (quart_tenants[\w.]*) import ([\w, ]+)$", text, re.MULTILINE)

    missing = [
        f"{module}.{name}"
        for module, names in imports
        for name in names.split(", ")
        if not hasattr(importlib.import_module(module), name)
    ]
    assert missing == []


# Errors


def read_remedies(text: str) -> dict[str, tuple[str, str]]:
    """Return the cause and the remedy of each code that has both."""
    found = re.findall(r"^### `(\w+)`\n\n\*\*Cause\.\*\* (.*\w.+)\n\n\*\*Remedy\.\*\* (.*\w.+)$", text, re.MULTILINE)
    return {code: (cause, remedy) for code, cause, remedy in found}


def test_errors_have_a_cause_and_a_remedy() -> None:
    """`docs/errors.md` says for each error where it comes from and what to do, once."""
    text = (DOCS / "errors.md").read_text(encoding="utf-8")

    assert sorted(read_remedies(text)) == sorted(CODES)
    assert len(re.findall(r"^### ", text, re.MULTILINE)) == len(CODES)


def test_error_without_a_remedy_is_found() -> None:
    """Negative control: a heading with a cause alone does not count, nor does a remedy that says nothing."""
    assert read_remedies("### `leak`\n\n**Cause.** A leak.\n\n**Remedy.** -\n") == {}
    assert read_remedies("### `leak`\n\n**Cause.** A leak.\n\n### `no_tenant`\n\n**Remedy.** Name it.\n") == {}


@pytest.mark.parametrize("page", ["errors.md", "troubleshooting.md"])
def test_codes_that_a_page_names_exist(page: str) -> None:
    """What looks like the code of an answer (a status with a code) is the code of an error."""
    named = re.findall(r"\b[45]\d\d `(\w+)`", (DOCS / page).read_text(encoding="utf-8"))

    assert [code for code in named if code not in CODES] == []


# Drawings


def test_rooms_in_the_drawing_of_a_request_exist() -> None:
    """The drawing of a request's way names folders of the package."""
    rooms = re.findall(r"^([a-z]+/(?:[a-z]+/)?) ", (DOCS / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert len(rooms) > 5
    assert [room for room in rooms if not (ROOT / "quart_tenants" / room / "__init__.py").is_file()] == []


async def find_state(database: Database, slug: Slug) -> str:
    """Return the state in which the drawing shows a tenant."""
    try:
        return "suspended" if (await admin.get_tenant(database, slug)).suspended else "served"
    except UnknownTenantError:
        return "dropped" if slug in {tenant.slug for tenant in await admin.list_trash(database)} else "purged"


@pytest.mark.slow
async def test_drawing_of_a_tenants_states_agrees_with_the_commands(database: Database, settings: Settings) -> None:
    """Each command takes a tenant from state to state as drawn, and nothing else happens."""
    steps: dict[str, Callable[[Slug], Awaitable[object]]] = {
        "suspend": lambda slug: admin.suspend_tenant(database, slug),
        "resume": lambda slug: admin.resume_tenant(database, slug),
        "drop": lambda slug: admin.drop_tenant(database, slug),
        "undrop": lambda slug: admin.undrop_tenant(database, slug, settings=settings),
        "purge": lambda slug: admin.purge_trash(database, settings=settings, slugs=[slug]),
    }
    ways = [[], ["suspend"], ["drop"], ["suspend", "drop"], ["drop", "purge"]]
    seen = set()

    for number, way in enumerate(ways):
        for step in steps:
            slug = parse_slug(f"t{number}-{step}")
            await admin.create_tenant(database, slug, "A tenant", settings=settings)
            for earlier in way:
                await steps[earlier](slug)
            before = await find_state(database, slug)
            # A step that is refused leaves the tenant in its state.
            with contextlib.suppress(TenantError):
                await steps[step](slug)
            after = await find_state(database, slug)
            if after != before:
                seen.add((before, after, step))

    page = (DOCS / "operating.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^(\w+) +--> (\w+) +(\w+)", page, re.MULTILINE)) == seen

"""Let an operator act: say what will happen and by which command, ask, do it, and write down who did it."""

import shlex
from http import HTTPStatus

from quart import Blueprint, g, redirect, request, url_for
from quart.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound

from quart_tenants.console.actions import FLEET_ACTIONS, TENANT_ACTIONS, Action, Values, parse_values
from quart_tenants.console.console import Console
from quart_tenants.console.showing import show
from quart_tenants.errors import InvalidRequestError, TenantError, UnknownTenantError
from quart_tenants.postgres.fleet.tenant_life import get_tenant_life
from quart_tenants.tenant import Slug, parse_slug


def add_action_pages(blueprint: Blueprint, console: Console, host: str | None) -> None:
    """Let *blueprint* serve the actions at *host*."""

    @blueprint.get("/tenants/<slug>/<name>", host=host)
    async def ask_about_tenant(slug: str, name: str) -> ResponseReturnValue:
        life = await get_tenant_life(console.database, parse_slug(slug))
        return await _ask(console, _find(TENANT_ACTIONS, name), life.slug, life.id)

    @blueprint.post("/tenants/<slug>/<name>", host=host)
    async def act_on_tenant(slug: str, name: str) -> ResponseReturnValue:
        return await _act(console, _find(TENANT_ACTIONS, name), parse_slug(slug))

    @blueprint.get("/fleet/<name>", host=host)
    async def ask_about_fleet(name: str) -> ResponseReturnValue:
        return await _ask(console, _find(FLEET_ACTIONS, name), None, None)

    @blueprint.post("/fleet/<name>", host=host)
    async def act_on_fleet(name: str) -> ResponseReturnValue:
        return await _act(console, _find(FLEET_ACTIONS, name), None)


def _find(actions: dict[str, Action], name: str) -> Action:
    if name not in actions:
        raise NotFound
    return actions[name]


async def _ask(
    console: Console, action: Action, slug: Slug | None, tenant_id: int | None, problem: str | None = None
) -> ResponseReturnValue:
    """Return the form of *action*, or what has to be confirmed once the form is filled in."""
    given = request.args
    if action.fields and not given:
        return await show(console, "form.html", action=action, slug=slug, given=given, problem=None)
    try:
        values = parse_values(action, given)
    except TenantError as error:
        page = await show(console, "form.html", action=action, slug=slug, given=given, problem=str(error))
        return page, HTTPStatus.BAD_REQUEST
    concerned = None if action.find_concerned is None else await action.find_concerned(console, values)
    answer = _get_answer(action, slug, concerned)
    page = await show(
        console,
        "confirm.html",
        action=action,
        slug=slug,
        command=_show_command(console, action, slug, values),
        answer=answer,
        concerned=concerned,
        may_act=(action.act is not None or console.runs is not None) and concerned != [],
        token=console.sign(action.name, slug, tenant_id, dict(values), answer),
        problem=problem,
    )
    return page, HTTPStatus.BAD_REQUEST if problem else HTTPStatus.OK


async def _act(console: Console, action: Action, slug: Slug | None) -> ResponseReturnValue:
    """Do what an operator has confirmed, and go on to the page that shows it."""
    form = await request.form
    name, confirmed_slug, tenant_id, values, answer = console.read_signed(form.get("token", ""))
    if (name, confirmed_slug) != (action.name, slug):
        raise InvalidRequestError("this page confirms another action; nothing was done")
    if answer is not None and form.get("answer", "").strip() != answer:
        return await _ask(console, action, slug, tenant_id, f"that is not {answer}; nothing was done")
    command = _show_command(console, action, slug, values)
    outcome = "failed"
    try:
        if slug is not None:
            await _check_same(console, slug, tenant_id)
        if action.act is None or slug is None:
            target = _start(console, action, slug, values, command)
        else:
            done = await action.act(console, slug, values)
            target = url_for(".tenant", slug=done.slug, done=console.sign(done.sentence))
        outcome = "ok"
    except TenantError as error:
        outcome = error.code
        raise
    finally:
        console.fleet.forget()
        console.write_down(action.name, command, outcome, slug)
    return redirect(target, HTTPStatus.SEE_OTHER)


def _start(console: Console, action: Action, slug: Slug | None, values: Values, command: str) -> str:
    if console.runs is None:
        raise InvalidRequestError(f"this console starts no commands that take long: run {command}")
    arguments = action.make_arguments(slug or "", values)
    run = console.runs.start(arguments, command, g.operator, keep_output=action.keep_output)
    return url_for(".run", number=run.number)


async def _check_same(console: Console, slug: Slug, tenant_id: int) -> None:
    """Make sure that the tenant *slug* is the one that the operator has seen.

    Raises:
        UnknownTenantError: It is gone, or another tenant has its name.
    """
    life = await get_tenant_life(console.database, slug)
    if life.id != tenant_id:
        raise UnknownTenantError(slug)


def _get_answer(action: Action, slug: Slug | None, concerned: list[str] | None) -> str | None:
    """Return what the operator has to type: the tenant's name, or the number of several. None: nothing."""
    if not action.asks:
        return None
    if concerned is None:
        return slug
    return concerned[0] if len(concerned) == 1 else str(len(concerned))


def _show_command(console: Console, action: Action, slug: Slug | None, values: Values) -> str:
    if action.for_users and not console.has_users:
        return ""
    return shlex.join([*console.program, *action.make_arguments(slug or "", values)])

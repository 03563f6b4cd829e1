"""Show the commands that the console runs, live where the browser runs scripts."""

import json
from collections.abc import AsyncIterator
from http import HTTPStatus

from quart import Blueprint, Response, redirect, request, url_for
from quart.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound

from quart_tenants.console.console import Console
from quart_tenants.console.runs import Run, Runs
from quart_tenants.console.showing import show


def add_run_pages(blueprint: Blueprint, console: Console, runs: Runs, host: str | None) -> None:
    """Let *blueprint* show *runs* at *host*."""

    def get_run(number: int) -> Run:
        run = runs.find(number)
        if run is None:
            raise NotFound
        return run

    @blueprint.get("/runs", host=host)
    async def list_runs() -> ResponseReturnValue:
        return await show(console, "runs.html", runs=runs.list())

    @blueprint.get("/runs/<int:number>", host=host)
    async def run(number: int) -> ResponseReturnValue:
        return await show(console, "run.html", run=get_run(number), token=console.sign("interrupt", number))

    @blueprint.get("/runs/<int:number>/events", host=host)
    async def run_events(number: int) -> ResponseReturnValue:
        answer = Response(_tell(get_run(number)), mimetype="text/event-stream")
        answer.timeout = None
        return answer

    @blueprint.post("/runs/<int:number>", host=host)
    async def interrupt_run(number: int) -> ResponseReturnValue:
        run = get_run(number)
        form = await request.form
        if console.read_signed(form.get("token", "")) != ["interrupt", number]:
            raise NotFound
        runs.interrupt(run)
        console.write_down("interrupt", run.command, "ok", None)
        return redirect(url_for(".run", number=number), HTTPStatus.SEE_OTHER)


async def _tell(run: Run) -> AsyncIterator[str]:
    """Yield what is new of *run*, until it has ended."""
    async for _ in run.watch():
        facts = {
            "state": run.state,
            "running": run.status is None,
            "done": run.done,
            "total": run.total,
            "seconds": run.seconds,
            "lines": list(run.lines),
        }
        yield f"data: {json.dumps(facts)}\n\n"

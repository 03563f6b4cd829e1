"""Hold what the pages of one console share: its database, its runs, who signs its forms, and what calls the hooks."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from itsdangerous import BadData, URLSafeTimedSerializer
from quart import g

from quart_tenants.audit import audit
from quart_tenants.console.comparison import Comparisons
from quart_tenants.console.fleet_watch import FleetWatch
from quart_tenants.console.runs import Runs
from quart_tenants.console.samples import Samples, TakeSample
from quart_tenants.errors import InvalidRequestError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.settings import Settings
from quart_tenants.web.context import find_address
from quart_tenants.web.lifecycle_hooks import TenantEvent

RunHooks = Callable[[str, TenantEvent], Awaitable[None]]
"""Calls the hooks of the app for a kind of event, such as `created`."""

_CONNECTIONS = 4
_FORM_SECONDS = 3600
"""How long a page that asks for a confirmation is valid."""


class Console:
    """What the pages share. It has a few connections of its own, so that no request of a customer waits for them.

    Attributes:
        settings: Those of the app.
        program: How the commands of this app are typed, such as `quart-tenants`.
        has_users: Whether that program has the commands `user …`.
        runs: Commands that this console has started; None where it starts none.
        comparisons: What the last comparison of all tables has found.
        samples: How busy the workers were lately.
        fleet: What needs doing.
        run_hooks: Calls the hooks of the app.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        program: Sequence[str],
        get_key: Callable[[], str | bytes],
        run_hooks: RunHooks,
        take_sample: TakeSample,
        has_users: bool = False,
        runs: Runs | None = None,
    ) -> None:
        self.settings = settings
        self.program = tuple(program)
        self.has_users = has_users
        self.runs = runs
        self.fleet = FleetWatch(lambda: self.database, settings)
        self.run_hooks = run_hooks
        self.samples = Samples(take_sample)
        self.comparisons = Comparisons(runs)
        self._get_key = get_key
        self._stack = AsyncExitStack()
        self._database: Database | None = None

    @property
    def database(self) -> Database:
        """The console's own connections.

        Raises:
            RuntimeError: The app is not serving.
        """
        if self._database is None:
            raise RuntimeError("the console is not open: the app is not serving")
        return self._database

    async def open(self) -> None:
        """Open the database. Raises the errors of `Database.open`."""
        # For many tenants, because an operator looks at one after the other.
        opened = await Database.open(self.settings, max_size=_CONNECTIONS, for_many_tenants=True)
        self._database = await self._stack.enter_async_context(opened)
        self._stack.push_async_callback(self.fleet.close)
        self.samples.open()
        self._stack.push_async_callback(self.samples.close)
        if self.runs is not None:
            # An operator will look soon. The workers of an app have other work when they start.
            self.fleet.begin()
            self._stack.push_async_callback(self.runs.close)

    async def close(self) -> None:
        """End what runs, and close the database."""
        await self._stack.aclose()

    def sign(self, *values: Any) -> str:
        """Return *values* as a text that nobody else can make, for the operator of this request."""
        return str(self._make_signer().dumps([g.operator, *values]))

    def read_signed(self, text: str) -> list[Any]:
        """Return the values of a text that `sign` has made for the same operator within the last hour.

        Raises:
            InvalidRequestError: It is another text, another operator's, or too old.
        """
        try:
            operator, *values = self._make_signer().loads(text, max_age=_FORM_SECONDS)
        except BadData as error:
            raise _too_old() from error
        if operator != g.operator:
            raise _too_old()
        return list(values)

    def _make_signer(self) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(self._get_key(), salt="quart_tenants console")

    def write_down(self, action: str, command: str, outcome: str, tenant: str | None) -> None:
        """Write an audit line that says which operator did what."""
        if self.settings.audit:
            audit(
                "console_action",
                action=action,
                tenant=tenant,
                command=command,
                operator=g.operator,
                address=find_address(),
                outcome=outcome,
            )


def _too_old() -> InvalidRequestError:
    return InvalidRequestError(
        "this page is more than an hour old, another operator's, or from an earlier start of the console; nothing was "
        "done: open it once more, and confirm it there"
    )

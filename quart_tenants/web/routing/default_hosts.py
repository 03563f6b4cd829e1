"""Give a host to routes that name none, and tell which ones nobody can reach."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from quart import Quart

from quart_tenants.web.routing.host_routing import ANY_HOST, STATIC_ENDING

_logger = logging.getLogger(__name__)

# The end of the path of a blueprint's static files, as Quart makes it.
_PATH = "/<path:filename>"


class DefaultHosts:
    """Gives a host to the routes of *app* that name none.

    Those are the routes of other extensions and the static files of blueprints, which cannot say for which hosts they
    are. Without a host a route is never reached.
    """

    def __init__(self, app: Quart) -> None:
        hosts = self
        self._app = app
        self._host: str | None = None
        parent: Any = app.url_rule_class

        class HostRule(parent):  # type: ignore[misc]
            def __init__(self, string: str, *, host: str | None = None, **options: Any) -> None:
                super().__init__(string, host=host or hosts._find(options.get("endpoint") or "", string), **options)

        app.url_rule_class = HostRule  # type: ignore[assignment]

    @contextlib.contextmanager
    def use(self, host: str) -> Iterator[None]:
        """Let *host* be that of the routes which are added in the context and name none."""
        before, self._host = self._host, host
        try:
            yield
        finally:
            self._host = before

    def tell_unreachable(self) -> None:
        """Write to the log which routes nobody can reach."""
        for rule in self._app.url_map.iter_rules():
            if not rule.host:
                _logger.warning(
                    "nobody can reach the route %s (endpoint %s), because it names no host: add host=tenants.host, or "
                    "another host; where you cannot, add it inside `with tenants.routes_at(tenants.apex_host):`",
                    rule.rule,
                    rule.endpoint,
                )

    def _find(self, endpoint: str, path: str) -> str | None:
        if self._host is None and endpoint.endswith(STATIC_ENDING) and path.endswith(_PATH):
            blueprint = self._app.blueprints.get(endpoint.removesuffix(STATIC_ENDING))
            if blueprint is not None and blueprint.has_static_folder:
                # The same files for everybody; Quart lets a blueprint name no host for them.
                return ANY_HOST
        return self._host

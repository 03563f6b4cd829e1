"""Tell each request, block and statement to OpenTelemetry as a span. The extra is `tracing`.

Names follow OpenTelemetry's stable conventions for HTTP servers and for PostgreSQL; what these have no name for begins
with `quart_tenants.`. A span never has what a visitor has sent or a row: no path, no query, no parameter, no literal,
and of an error its class only. This module is loaded only where a tracer provider was given.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, TracerProvider, set_span_in_context, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from quart_tenants.sql_parser import hide_literals
from quart_tenants.tenant import Tenant

_log = logging.getLogger(__name__)

_CONTEXT_HEADERS = (b"traceparent", b"tracestate")
# A visitor may send any word as the method, and the names of spans are to be few.
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_FIRST_FAILURE = 500
# Characters. Of a longer statement, which is one with many values, only the first word is told.
_LONGEST_STATEMENT = 10_000
_STATEMENTS = 500
"""So many texts are remembered without their literals."""

_Attributes = Mapping[str, AttributeValue]


class Spans:
    """Makes the spans of one worker. Whatever the provider does, no request fails by it."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("quart_tenants")
        self._parents = TraceContextTextMapPropagator()
        self._has_failed = False

    def find_parent(self, headers: Any) -> Context | None:
        """Return the W3C trace context in *headers*, or None. Call it for headers of trusted proxies only."""
        carrier: dict[str, list[str]] = {}
        for name, value in headers:
            if name in _CONTEXT_HEADERS:
                carrier.setdefault(name.decode(), []).append(value.decode("latin-1"))
        if len(carrier.get("traceparent", ())) != 1:
            # Of two that differ nobody knows which is right.
            return None
        return self._parents.extract(carrier)

    @contextmanager
    def request(self, method: str, scheme: str, parent: Context | None) -> Iterator["RequestSpan"]:
        """Let the span of a request be the current one in the context, and end it then.

        Args:
            method: As it was sent.
            scheme: Such as `https`.
            parent: Whose child the span is. None: that of the span which is current now, if there is one.
        """
        known = method if method in _METHODS else "_OTHER"
        attributes = {"http.request.method": known, "url.scheme": scheme}
        name = known if known in _METHODS else "HTTP"
        span = self._begin(name, SpanKind.SERVER, attributes, parent)
        request = RequestSpan(name)
        try:
            with use_span(span, record_exception=False, set_status_on_exception=False):
                yield request
        except BaseException as error:
            request.error = type(error).__qualname__
            raise
        finally:
            self._end_request(span, request)

    def begin_block(self, tenant: Tenant | None) -> "BlockSpan | None":
        """Begin the span of a block, as a child of the current one. None means that it is not recorded."""
        attributes: dict[str, str | int] = {} if tenant is None else _describe(tenant)
        span = self._begin("block", SpanKind.INTERNAL, attributes)
        if not span.is_recording():
            return None
        return BlockSpan(self, span, None if tenant is None else tenant.schema.name)

    def begin_statement(self, statement: str, schema: str | None, block: Span, began_at: int) -> Span:
        """Begin the span of *statement*, at a time in nanoseconds since 1970."""
        text, operation = _describe_statement(statement)
        attributes = {"db.system.name": "postgresql", "db.query.text": text, "db.query.summary": operation}
        if schema is not None:
            attributes["db.namespace"] = schema
        return self._begin(operation, SpanKind.CLIENT, attributes, set_span_in_context(block), began_at)

    def end(self, span: Span, attributes: _Attributes, error: str | None, name: str | None = None) -> None:
        """End *span*. *error* says of what kind it was, and never what it said."""
        try:
            span.set_attributes(attributes)
            if name is not None:
                span.update_name(name)
            if error is not None:
                span.set_attribute("error.type", error)
                span.set_status(StatusCode.ERROR)
            span.end()
        except Exception:  # noqa: BLE001  (it is logged)
            self._tell()

    def _begin(
        self, name: str, kind: SpanKind, attributes: _Attributes, parent: Context | None = None, at: int | None = None
    ) -> Span:
        try:
            return self._tracer.start_span(name, parent, kind, attributes, start_time=at)
        except Exception:  # noqa: BLE001  (it is logged)
            self._tell()
            return INVALID_SPAN

    def _end_request(self, span: Span, request: "RequestSpan") -> None:
        attributes: dict[str, str | int] = {} if request.tenant is None else _describe(request.tenant)
        if request.request_id is not None:
            attributes["quart_tenants.request_id"] = request.request_id
        error, name = request.error, None
        if request.status:
            attributes["http.response.status_code"] = request.status
            if request.status >= _FIRST_FAILURE:
                error = str(request.status)
        if request.route is not None:
            attributes["http.route"] = request.route
            name = f"{request.name} {request.route}"
        self.end(span, attributes, error, name)

    def _tell(self) -> None:
        # Once, because this is called for each request.
        if not self._has_failed:
            _log.exception("spans cannot be made or ended; requests are served all the same")
        self._has_failed = True


class RequestSpan:
    """What becomes known of a request until it ends.

    Attributes:
        name: How the span is called at first.
        status: Of the answer; 0 for none.
        route: The pattern of the route, such as `/orders/<int:number>`; None if there was none.
        tenant: Whose request it was; None if nobody's.
        request_id: The id in the log, if it has one.
        error: The class of what the app raised, if it did.
    """

    __slots__ = ("error", "name", "request_id", "route", "status", "tenant")

    def __init__(self, name: str) -> None:
        self.name = name
        self.status = 0
        self.route: str | None = None
        self.tenant: Tenant | None = None
        self.request_id: str | None = None
        self.error: str | None = None


class BlockSpan:
    """The span of one block, to which those of its statements belong."""

    __slots__ = ("_schema", "_span", "_spans")

    def __init__(self, spans: Spans, span: Span, schema: str | None) -> None:
        self._spans = spans
        self._span = span
        self._schema = schema

    def add_statement(self, statement: str, seconds: float, rows: int, error: BaseException | None) -> None:
        """Add a statement that has ended now, after *seconds*."""
        began_at = time.time_ns() - int(seconds * 1e9)
        span = self._spans.begin_statement(statement, self._schema, self._span, began_at)
        attributes: dict[str, str | int] = {"db.response.returned_rows": rows}
        code = getattr(error, "sqlstate", None)
        if code is not None:
            attributes["db.response.status_code"] = code
        self._spans.end(span, attributes, None if error is None else code or type(error).__qualname__)

    def end(self, error: BaseException | None, **figures: float) -> None:
        """End the span with *figures* of the block."""
        attributes = {f"quart_tenants.{name}": figure for name, figure in figures.items()}
        self._spans.end(self._span, attributes, None if error is None else type(error).__qualname__)


def _describe(tenant: Tenant) -> dict[str, str | int]:
    return {"quart_tenants.tenant": tenant.slug, "quart_tenants.version": tenant.version}


def _describe_statement(statement: str) -> tuple[str, str]:
    """Return *statement* without its literals, and its first word in capitals."""
    if len(statement) <= _LONGEST_STATEMENT:
        return _read_statement(statement)
    first = "".join(statement[:100].split()[:1])
    return f"{first} …", _name(first)


@lru_cache(maxsize=_STATEMENTS)
def _read_statement(statement: str) -> tuple[str, str]:
    text = hide_literals(statement)
    return text, _name(text.partition(" ")[0])


def _name(first: str) -> str:
    return first.upper() if first.isalpha() else "SQL"

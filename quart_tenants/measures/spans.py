"""Tell each request, block and statement to OpenTelemetry as a span. The extra is `tracing`.

Names follow OpenTelemetry's stable conventions for HTTP servers and for PostgreSQL; what these have no name for begins
with `quart_tenants.`. A span never has what a visitor has sent or a row: no path, no query, no parameter, no literal,
and of an error its class only. This module is loaded only where a tracer provider was given.
"""

import logging
import time
from functools import lru_cache
from typing import Any

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanKind,
    StatusCode,
    TracerProvider,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from quart_tenants.sql_parser import hide_literals
from quart_tenants.tenant import Tenant

_log = logging.getLogger(__name__)

_CONTEXT_HEADERS = (b"traceparent", b"tracestate")
# A visitor may send any word as the method, and the names of spans are to be few.
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_OTHER = "_OTHER"
_FIRST_FAILURE = 500
# Characters. Of a longer statement, which is one with many values, only the first word is told.
_LONGEST_STATEMENT = 10_000
_STATEMENTS = 500
"""So many texts are remembered without their literals."""
_WORTH_TELLING = 0.001
"""Seconds of waiting."""


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

    def begin_request(self, method: str, scheme: str, parent: Context | None) -> "RequestSpan":
        """Begin the span of a request, and let it be the current one until its end.

        Args:
            method: As it was sent.
            scheme: Such as `https`.
            parent: Whose child the span is. None: that of the span which is current now, if there is one.
        """
        known = method if method in _METHODS else _OTHER
        return RequestSpan(self, self.begin(_name_request(known), SpanKind.SERVER, parent), known, scheme)

    def begin_block(self, tenant: Tenant | None) -> "BlockSpan | None":
        """Begin the span of a block, as a child of the current one. None means that it is not recorded."""
        around = get_current_span().get_span_context()
        if around.is_valid and not around.trace_flags.sampled:
            return None
        span = self.begin("block", SpanKind.INTERNAL)
        return BlockSpan(self, span, tenant) if span.is_recording() else None

    def begin(self, name: str, kind: SpanKind, parent: Context | None = None, at: int | None = None) -> Span:
        """Begin a span without attributes: it is cheaper to set all at the end."""
        try:
            return self._tracer.start_span(name, parent, kind, start_time=at)
        except Exception:  # noqa: BLE001  (it is logged)
            self._tell()
            return INVALID_SPAN

    def end(self, span: Span, attributes: dict[str, AttributeValue], error: str | None) -> None:
        """End *span*. *error* says of what kind it was, and never what it said."""
        try:
            if error is not None:
                attributes["error.type"] = error
                span.set_status(StatusCode.ERROR)
            span.set_attributes(attributes)
            span.end()
        except Exception:  # noqa: BLE001  (it is logged)
            self._tell()

    def _tell(self) -> None:
        # Once, because this is called for each request.
        if not self._has_failed:
            _log.exception("spans cannot be made or ended; requests are served all the same")
        self._has_failed = True


class RequestSpan:
    """The span of one request."""

    __slots__ = ("_method", "_scheme", "_span", "_spans", "_token")

    def __init__(self, spans: Spans, span: Span, method: str, scheme: str) -> None:
        self._spans = spans
        self._span = span
        self._method = method
        self._scheme = scheme
        self._token = attach(set_span_in_context(span))

    def end(
        self,
        status: int,
        route: str | None,
        tenant: Tenant | None,
        request_id: str | None,
        error: BaseException | None,
    ) -> None:
        """End the span.

        Args:
            status: Of the answer; 0 for none.
            route: The pattern of the route, such as `/orders/<int:number>`; None if there was none.
            tenant: Whose request it was; None if nobody's.
            request_id: The id in the log, if it has one.
            error: What the app has raised.
        """
        detach(self._token)
        attributes: dict[str, AttributeValue] = {"http.request.method": self._method, "url.scheme": self._scheme}
        if tenant is not None:
            attributes["quart_tenants.tenant"] = tenant.slug
            attributes["quart_tenants.version"] = tenant.version
        if request_id is not None:
            attributes["quart_tenants.request_id"] = request_id
        if status:
            attributes["http.response.status_code"] = status
        if route is not None:
            attributes["http.route"] = route
            self._span.update_name(f"{_name_request(self._method)} {route}")
        failure = None if error is None else type(error).__qualname__
        self._spans.end(self._span, attributes, str(status) if status >= _FIRST_FAILURE else failure)


class BlockSpan:
    """The span of one block, to which those of its statements belong."""

    __slots__ = ("_context", "_span", "_spans", "_tenant")

    def __init__(self, spans: Spans, span: Span, tenant: Tenant | None) -> None:
        self._spans = spans
        self._span = span
        self._tenant = tenant
        self._context = set_span_in_context(span)

    def add_statement(self, statement: str, seconds: float, rows: int, error: BaseException | None) -> None:
        """Add a statement that has ended now, after *seconds*."""
        text, name = _describe_statement(statement)
        span = self._spans.begin(name, SpanKind.CLIENT, self._context, time.time_ns() - int(seconds * 1e9))
        attributes: dict[str, AttributeValue] = {
            "db.system.name": "postgresql",
            "db.query.text": text,
            "db.response.returned_rows": rows,
        }
        if self._tenant is not None:
            attributes["db.namespace"] = self._tenant.schema.name
        code = getattr(error, "sqlstate", None)
        if code is not None:
            attributes["db.response.status_code"] = code
        self._spans.end(span, attributes, None if error is None else code or type(error).__qualname__)

    def end(self, rows: int, round_trips: int, share: float, connection: float, error: BaseException | None) -> None:
        """End the span.

        Args:
            rows: How many the block has read.
            round_trips: How many messages went to the server and back.
            share: Seconds of waiting for the tenant's share of the pool.
            connection: Seconds of waiting for a connection.
            error: What the block ended by.
        """
        attributes: dict[str, AttributeValue] = {"quart_tenants.rows": rows, "quart_tenants.round_trips": round_trips}
        if self._tenant is not None:
            attributes["quart_tenants.tenant"] = self._tenant.slug
            attributes["quart_tenants.version"] = self._tenant.version
        if share >= _WORTH_TELLING:
            attributes["quart_tenants.share_seconds"] = share
        if connection >= _WORTH_TELLING:
            attributes["quart_tenants.connection_seconds"] = connection
        self._spans.end(self._span, attributes, None if error is None else type(error).__qualname__)


def _name_request(method: str) -> str:
    return "HTTP" if method == _OTHER else method


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

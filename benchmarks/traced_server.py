"""`serve` with a span for each request, block and statement: `python -m benchmarks.traced_server serve …`.

Spans go to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names, if OpenTelemetry's exporter for HTTP is installed, and
else nowhere, after they were put into batches.
"""

import importlib
import os
from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from quart import Quart

from quart_tenants.app import cli, create_app


class _NoCollector(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Drop them."""
        return SpanExportResult.SUCCESS


def create_traced_app() -> Quart:
    """Return the reference app with a provider."""
    exporter: Any = _NoCollector()
    if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
        exporter = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter").OTLPSpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return create_app(tracer_provider=provider)


if __name__ == "__main__":
    cli.create_app = create_traced_app  # type: ignore[assignment, attr-defined]
    cli.main()

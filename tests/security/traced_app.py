"""The reference app with OpenTelemetry's spans in a file, for tests that look for secrets there."""

import os
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from quart import Quart

from quart_tenants.app import create_app as create_reference_app


def create_app() -> Quart:
    """Return it. The environment names the file."""
    provider = TracerProvider()
    spans = Path(os.environ["SPANS_FILE"]).open("a", encoding="utf-8")  # noqa: SIM115  (open as long as the app)
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=spans)))
    return create_reference_app(tracer_provider=provider)

"""OpenTelemetry: each request, block and statement is a span that says whose it was, and never what was in it."""

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest
from opentelemetry import context, propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from quart import Quart, ResponseReturnValue, request
from werkzeug.datastructures import Headers

from quart_tenants import QuartTenants, tenant_connection
from quart_tenants.errors import SettingError
from quart_tenants.measures.spans import Spans
from tests.support.databases import REFERENCE_FILES
from tests.support.patience import DEADLINE

pytestmark = pytest.mark.slow

OURS, STRANGER = ("10.0.0.1", 1), ("203.0.113.9", 1)
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
PLANTED = "planted-value"


def make_app(database_url: str, provider: TracerProvider | None) -> Quart:
    """Return an app that reads, fails and starts a job."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(
        TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url, TENANTS_TRUSTED_PROXIES="10.0.0.0/8"
    )
    tenants = QuartTenants(app, tracer_provider=provider)

    @app.get("/users/<name>", host=tenants.host)
    async def users(name: str) -> ResponseReturnValue:
        async with tenant_connection() as connection:
            rows = await connection.fetch("SELECT username FROM app_user WHERE username = $1", name)
            await connection.execute(f"SELECT '{PLANTED}' WHERE false")
        return {"users": [row["username"] for row in rows]}

    @app.get("/fail", host=tenants.host)
    async def fail() -> ResponseReturnValue:
        try:
            raise KeyError(PLANTED)
        except KeyError:
            # A statement that goes well while another error is handled has not failed.
            async with tenant_connection() as connection:
                await connection.fetchval("SELECT 1")
        async with tenant_connection() as connection:
            await connection.execute("SELECT $1::text::int", request.args["value"])
        return ""

    @app.get("/start", host=tenants.host)
    async def start() -> ResponseReturnValue:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return carrier

    return app


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Where the spans of the test are."""
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    """The provider that puts them there."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
async def app(database_url: str, provider: TracerProvider) -> AsyncIterator[Quart]:
    """The app, serving, with its spans in `exporter`."""
    app = make_app(database_url, provider)
    async with app.test_app():
        yield app


async def get(
    app: Quart,
    path: str,
    host: str = "acme.localhost",
    *,
    client: tuple[str, int] = STRANGER,
    headers: Sequence[tuple[str, str]] = (),
) -> Any:
    """Return the answer to a request of *client*."""
    sent = Headers([("Host", host), *headers])
    return await app.test_client().get(path, headers=sent, scope_base={"client": client})


def find(spans: Sequence[ReadableSpan], name: str) -> ReadableSpan:
    """Return the one span of that name."""
    (found,) = [span for span in spans if span.name == name]
    return found


def tell_all(spans: Sequence[ReadableSpan]) -> str:
    """Return everything that the spans say."""
    return "\n".join(span.to_json() for span in spans)


async def test_request_block_and_statement_are_spans(app: Quart, exporter: InMemorySpanExporter) -> None:
    """A statement's span is in its block's, and that in its request's; they say whose, how many rows and messages."""
    answer = await get(app, "/users/user_1?token=planted-token", "company1.localhost")

    assert (await answer.get_json()) == {"users": ["user_1"]}
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["SELECT", "SELECT", "block", "GET /users/<name>"]
    read, second, block, asked = spans
    assert dict(asked.attributes or {}) == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "http.route": "/users/<name>",
        "http.response.status_code": 200,
        "quart_tenants.tenant": "company1",
        "quart_tenants.version": 1,
    }
    assert (asked.kind, asked.parent) == (trace.SpanKind.SERVER, None)
    told = dict(block.attributes or {})
    assert {key: told[f"quart_tenants.{key}"] for key in ("tenant", "version", "rows")} == {
        "tenant": "company1",
        "version": 1,
        "rows": 1,
    }
    assert block.parent == asked.context
    assert dict(read.attributes or {}) == {
        "db.system.name": "postgresql",
        "db.namespace": "company1",
        "db.query.text": "SELECT username FROM app_user WHERE username = $1",
        "db.response.returned_rows": 1,
    }
    assert (read.kind, read.parent, second.parent) == (trace.SpanKind.CLIENT, block.context, block.context)
    for inner, outer in ((read, block), (second, block), (block, asked)):
        assert inner.start_time is not None
        assert outer.start_time is not None
        assert inner.end_time is not None
        assert outer.end_time is not None
        # A millisecond, because a statement's beginning is told by another clock than the others.
        assert outer.start_time - 1_000_000 <= inner.start_time <= inner.end_time <= outer.end_time


@pytest.mark.usefixtures("fast_driver_only")
async def test_block_tells_its_round_trips(app: Quart, exporter: InMemorySpanExporter) -> None:
    """A warm block that reads and then executes sends more than one message, and its span says how many."""
    for _ in range(3):
        await get(app, "/users/user_1")

    block = [span for span in exporter.get_finished_spans() if span.name == "block"][-1]
    assert int((block.attributes or {})["quart_tenants.round_trips"]) > 1  # type: ignore[arg-type]


async def test_tenants_are_told_apart(app: Quart, exporter: InMemorySpanExporter) -> None:
    """Two requests at once are two traces, and each span is its own tenant's."""
    await asyncio.gather(
        get(app, "/users/user_1", "acme.localhost"), get(app, "/users/user_1", "globex.localhost:8000")
    )

    tenants_of: dict[int, set[object]] = {}
    for span in exporter.get_finished_spans():
        told = span.attributes or {}
        whose = told.get("quart_tenants.tenant", told.get("db.namespace"))
        tenants_of.setdefault(span.context.trace_id, set()).add(whose)
    assert sorted(tenants_of.values(), key=str) == [{"acme"}, {"globex"}]


async def test_nothing_of_a_visitor_is_told(app: Quart, exporter: InMemorySpanExporter) -> None:
    """No path, query, header, parameter, literal, row or word of an error is in any span."""
    headers = [("Authorization", f"Bearer {PLANTED}"), ("Cookie", f"session={PLANTED}")]
    await get(app, f"/users/{PLANTED}?token={PLANTED}", headers=headers)
    await get(app, f"/fail?value={PLANTED}", headers=headers)
    await get(app, f"/{PLANTED}", headers=headers)
    await get(app, "/users/x", host=f"{PLANTED}.localhost", headers=headers)
    await app.test_client().open("/users/x", method=PLANTED.upper(), headers={"Host": "acme.localhost"}, json={})

    spans = exporter.get_finished_spans()
    assert [span.name for span in spans if span.kind is trace.SpanKind.SERVER] == [
        "GET /users/<name>",
        "GET /fail",
        "GET",
        "GET /users/<name>",
        "HTTP",
    ]
    assert PLANTED not in tell_all(spans).lower()


async def test_naive_span_gives_the_values_away(exporter: InMemorySpanExporter, provider: TracerProvider) -> None:
    """OpenTelemetry's own way tells an error's words, so the search above finds what is there."""
    with pytest.raises(KeyError), provider.get_tracer("naive").start_as_current_span("naive"):
        raise KeyError(PLANTED)

    assert PLANTED in tell_all(exporter.get_finished_spans())


async def test_failed_statement_tells_its_code(app: Quart, exporter: InMemorySpanExporter) -> None:
    """A statement's span has PostgreSQL's code, the block's the class of the error, the request's the status."""
    assert (await get(app, "/fail?value=x")).status_code == 500

    well, first, failed, second, asked = exporter.get_finished_spans()
    assert (well.status.status_code, first.status.status_code) == (trace.StatusCode.UNSET,) * 2
    told = dict(failed.attributes or {})
    assert (told["db.response.status_code"], told["error.type"]) == ("22P02", "22P02")
    assert (second.attributes or {})["error.type"] == asyncpg.InvalidTextRepresentationError.__qualname__
    assert (asked.attributes or {})["error.type"] == "500"
    for span in (failed, second, asked):
        assert span.status.status_code is trace.StatusCode.ERROR
        assert not span.status.description
        assert not span.events


async def test_refusal_is_no_failure(app: Quart, exporter: InMemorySpanExporter) -> None:
    """An answer 404 is not an error of ours."""
    assert (await get(app, "/nowhere")).status_code == 404

    (asked,) = exporter.get_finished_spans()
    assert asked.status.status_code is trace.StatusCode.UNSET
    assert "error.type" not in (asked.attributes or {})


@pytest.mark.parametrize(("client", "continued"), [(OURS, True), (STRANGER, False)], ids=["trusted proxy", "stranger"])
async def test_only_a_trusted_proxy_continues_a_trace(
    app: Quart, exporter: InMemorySpanExporter, client: tuple[str, int], continued: bool
) -> None:
    """The header of a proxy in `TENANTS_TRUSTED_PROXIES` makes the request a part of its trace, a stranger's not."""
    await get(app, "/users/user_1", client=client, headers=[("traceparent", TRACEPARENT)])

    asked = find(exporter.get_finished_spans(), "GET /users/<name>")
    assert (f"{asked.context.trace_id:032x}" == TRACE) is continued
    assert (asked.parent is not None and f"{asked.parent.span_id:016x}" == PARENT) is continued


@pytest.mark.parametrize(
    "headers",
    [
        [("traceparent", "rubbish")],
        [("traceparent", f"00-{'0' * 32}-{PARENT}-01")],
        [("traceparent", "\xff" * 3000)],
        [("traceparent", TRACEPARENT), ("traceparent", f"00-{'1' * 32}-{PARENT}-01")],
        [("tracestate", "a=b")],
    ],
    ids=["rubbish", "zeros", "bytes", "two", "state alone"],
)
async def test_malformed_context_begins_a_new_trace(
    app: Quart, exporter: InMemorySpanExporter, headers: list[tuple[str, str]]
) -> None:
    """What a proxy sends, and is no trace context, is as nothing."""
    answer = await get(app, "/users/user_1", client=OURS, headers=headers)

    assert answer.status_code == 200
    assert find(exporter.get_finished_spans(), "GET /users/<name>").parent is None


async def test_job_continues_the_trace_of_its_request(
    app: Quart, exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    """What `inject` leaves in a request goes with a job, whose blocks are then a part of the same trace."""
    carrier = await (await get(app, "/start")).get_json()
    tracer = provider.get_tracer("jobs")
    async with app.app_context():
        with tracer.start_as_current_span("job", context=propagate.extract(carrier)):
            async with tenant_connection("acme") as connection:
                await connection.fetchval("SELECT 1")

    spans = exporter.get_finished_spans()
    asked, job, block = find(spans, "GET /start"), find(spans, "job"), find(spans, "block")
    assert (job.parent and job.parent.span_id, block.parent) == (asked.context.span_id, job.context)
    assert {span.context.trace_id for span in spans} == {asked.context.trace_id}


async def test_job_without_a_span_of_its_own_continues_the_trace(app: Quart, exporter: InMemorySpanExporter) -> None:
    """A block in the bare context of a request that was sampled is recorded; that of one that was not is not."""
    unsampled = {"traceparent": f"{TRACEPARENT[:-2]}00"}
    async with app.app_context():
        for carrier in ({"traceparent": TRACEPARENT}, unsampled):
            token = context.attach(propagate.extract(carrier))
            async with tenant_connection("acme") as connection:
                await connection.fetchval("SELECT 1")
            context.detach(token)

    assert [span.name for span in exporter.get_finished_spans()] == ["SELECT", "block"]


async def test_what_is_not_sampled_costs_no_statement(database_url: str, exporter: InMemorySpanExporter) -> None:
    """Of a request that is not recorded, its block and statements are not described."""
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = make_app(database_url, provider)
    async with app.test_app():
        assert app.extensions["quart_tenants"].measures.spans.begin_block(None) is None
        assert (await get(app, "/users/user_1")).status_code == 200

    assert exporter.get_finished_spans() == ()


def test_waiting_is_told(exporter: InMemorySpanExporter, provider: TracerProvider) -> None:
    """A block that waited for its tenant's share or for a connection says for how long, and any other says nothing."""
    for share, connection in ((0.5, 0.0), (0.0, 0.25), (0.0, 0.0)):
        block = Spans(provider).begin_block(None)
        assert block is not None
        block.end(0, 0, share, connection, None)

    told = [
        {name: value for name, value in (span.attributes or {}).items() if name.endswith("seconds")}
        for span in exporter.get_finished_spans()
    ]
    assert told == [{"quart_tenants.share_seconds": 0.5}, {"quart_tenants.connection_seconds": 0.25}, {}]


class StuckExporter(SpanExporter):
    """A collector that never answers, until the test is over."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.threads: set[int] = set()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Wait."""
        self.threads.add(threading.get_ident())
        self.go_on.wait(DEADLINE)
        return SpanExportResult.SUCCESS


class BrokenExporter(SpanExporter):
    """A collector that is away, or answers rubbish."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Fail."""
        if self._error is not None:
            raise self._error
        return SpanExportResult.FAILURE


async def test_stuck_collector_holds_up_no_request(database_url: str) -> None:
    """While the collector does not answer, all requests are served; spans that find no room are dropped."""
    stuck = StuckExporter()
    provider = TracerProvider()
    batches = BatchSpanProcessor(stuck, max_queue_size=8, max_export_batch_size=4, schedule_delay_millis=1)
    provider.add_span_processor(batches)
    app = make_app(database_url, provider)
    try:
        async with app.test_app():
            answers = [(await get(app, "/users/user_1")).status_code for _ in range(30)]
    finally:
        stuck.go_on.set()
        await asyncio.to_thread(provider.shutdown)

    assert answers == [200] * 30
    # A processor that sends each span at once would have sent them, and waited, in the thread of the requests.
    assert threading.get_ident() not in stuck.threads
    assert stuck.threads


def test_processor_without_batches_would_hold_requests_up() -> None:
    """The simple processor exports in the thread that ends the span: so the test above would find that."""
    stuck = StuckExporter()
    stuck.go_on.set()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(stuck))

    provider.get_tracer("naive").start_span("naive").end()

    assert stuck.threads == {threading.get_ident()}


@pytest.mark.parametrize(
    "error", [None, OSError("nobody answers"), ValueError("rubbish")], ids=["no", "away", "rubbish"]
)
async def test_broken_collector_loses_no_request(
    database_url: str, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    """A collector that is away or answers rubbish loses spans, and no request."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(BrokenExporter(error), schedule_delay_millis=1))
    app = make_app(database_url, provider)
    with caplog.at_level(logging.CRITICAL, "opentelemetry"):
        async with app.test_app():
            assert [(await get(app, "/users/user_1")).status_code for _ in range(10)] == [200] * 10
        await asyncio.to_thread(provider.shutdown)


class BrokenProcessor(SpanProcessor):
    """A processor of the app's own with a bug."""

    def __init__(self, broken: str) -> None:
        self._broken = broken

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Fail at the beginning."""
        if self._broken == "start":
            raise RuntimeError("a bug")

    def on_end(self, span: ReadableSpan) -> None:
        """Fail at the end."""
        if self._broken == "end":
            raise RuntimeError("a bug")


@pytest.mark.parametrize("broken", ["start", "end"])
async def test_broken_processor_loses_no_request(
    database_url: str, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    """A processor that raises is told once, requests are served, and no block keeps its share."""
    provider = TracerProvider()
    provider.add_span_processor(BrokenProcessor(broken))
    app = make_app(database_url, provider)
    async with app.test_app():
        answers = [(await get(app, "/users/user_1")).status_code for _ in range(10)]
        stats = app.extensions["quart_tenants"].get_stats()

    assert answers == [200] * 10
    assert (stats.pool.idle, stats.open_blocks) == (stats.pool.size, ())
    told = [record.getMessage() for record in caplog.records if record.name == "quart_tenants.measures.spans"]
    assert told == ["spans cannot be made or ended; requests are served all the same"]


async def test_without_a_provider_nothing_is_loaded(database_url: str) -> None:
    """An app that gives no provider does not import OpenTelemetry, and its requests make no spans."""
    script = f"""
import asyncio, sys
from tests.support.databases import REFERENCE_FILES
from quart import Quart
from quart_tenants import QuartTenants, tenant_connection
app = Quart("app", host_matching=True, static_folder=None)
app.config.update(TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL={database_url!r})
tenants = QuartTenants(app)

@app.get("/", host=tenants.host)
async def index():
    async with tenant_connection() as connection:
        return str(await connection.fetchval("SELECT 1"))

async def ask():
    async with app.test_app():
        answer = await app.test_client().get("/", headers={{"Host": "acme.localhost"}})
        return answer.status_code, [name for name in sys.modules if name.startswith("opentelemetry")]

print(asyncio.run(ask()))
"""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE, check=True
    )

    assert done.stdout == "(200, [])\n"


def test_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch, provider: TracerProvider) -> None:
    """Where OpenTelemetry's API is not installed, the extra is named."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    with pytest.raises(SettingError, match=r"quart-tenants\[tracing\]"):
        make_app("postgresql://nowhere/x", provider)

"""Each request is counted once, whatever the app sends."""

from typing import Any

from quart_tenants.measures.counts import Measures
from quart_tenants.web.guards.request_counts import RequestCounts


async def test_message_without_a_body_is_counted_and_passed_on() -> None:
    """ASGI lets an app leave out `body` where it is empty."""
    sent: list[Any] = []
    events: list[Any] = [
        {"type": "http.response.start", "status": 200, "headers": []},
        {"type": "http.response.body", "body": b"four", "more_body": True},
        {"type": "http.response.body"},
    ]

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for event in events:
            await send(event)

    async def send(event: Any) -> None:
        sent.append(event)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    measures = Measures()
    scope: Any = {"type": "http"}
    await RequestCounts(app, measures)(scope, receive, send)

    assert sent == events
    requests = measures.show_requests()
    assert (requests.by_status["2xx"], requests.bytes, requests.in_progress) == (1, 4, 0)

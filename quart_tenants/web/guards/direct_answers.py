"""Let an ASGI middleware answer a request itself, in place of the app."""

import asyncio

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart import Response
from quart.utils import encode_headers


async def send_answer(answer: Response, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Send *answer*, and throw away what arrives of the request meanwhile.

    Reading goes on because `LingeringClose` waits for the end of the request before it ends the answer.
    """
    body = await answer.get_data(as_text=False)
    reading = asyncio.create_task(_read_to_the_end(receive))
    try:
        headers = encode_headers(answer.headers)
        await send({"type": "http.response.start", "status": answer.status_code, "headers": headers, "trailers": False})
        await send({"type": "http.response.body", "body": body, "more_body": False})
    finally:
        reading.cancel()


async def _read_to_the_end(receive: ASGIReceiveCallable) -> None:
    event = await receive()
    while event["type"] == "http.request" and event["more_body"]:
        event = await receive()

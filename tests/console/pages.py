"""Read the pages of the console as a browser without scripts does."""

import html
import re
from urllib.parse import urlencode

from quart.typing import TestClientProtocol as Browser
from quart.wrappers import Response


async def read(answer: Response) -> str:
    """Return the page as text."""
    return await answer.get_data(as_text=True)


def find_token(page: str) -> str:
    """Return what the form of *page* sends along."""
    found = re.search(r'name="token" value="([^"]+)"', page)
    assert found, page
    return html.unescape(found[1])


def find_command(page: str) -> str:
    """Return the command line that a page of confirmation shows."""
    found = re.search(r"<pre tabindex=\"0\"><code>([^<]*)</code></pre>", page)
    assert found, page
    return html.unescape(found[1])


async def confirm(client: Browser, path: str, answer: str | None = None, **fields: str) -> Response:
    """Open the page of an action, and press its button; return the answer to that."""
    address = f"{path}?{urlencode(fields)}" if fields else path
    asked = await client.get(address)
    assert asked.status_code == 200, await read(asked)
    form = {"token": find_token(await read(asked))} | ({} if answer is None else {"answer": answer})
    return await client.post(address, form=form)

"""Visit an app as a browser does, without one."""

from quart.typing import TestClientProtocol
from quart.wrappers import Response

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
"""What Chromium accepts, about."""


class Visitor:
    """A browser at one host."""

    def __init__(self, client: TestClientProtocol, host: str, accept: str = BROWSER) -> None:
        self.client = client
        self.headers = {"Host": host, "Accept": accept}

    async def get(self, path: str, **headers: str) -> Response:
        """Open a page."""
        return await self.client.get(path, headers=self.headers | headers)

    async def post(self, path: str, headers: dict[str, str] | None = None, /, **fields: str) -> Response:
        """Send a form."""
        return await self.client.post(path, headers=self.headers | (headers or {}), form=fields)


async def read(answer: Response) -> str:
    """Return the page."""
    assert answer.mimetype == "text/html"
    return str(await answer.get_data(as_text=True))

"""Give the pages their style and the policy that allows it."""

import base64
import hashlib
from pathlib import Path

from markupsafe import Markup
from quart import Quart

STATIC = Path(__file__).parent / "static"


def add_page_style(app: Quart) -> dict[str, str]:
    """Let the templates of *app* use `style`, and return the headers of every answer.

    The style is in each page and not beside it: a host that is nobody's serves no file, and its page is to be readable.
    The policy names the digest of the style, so no other style, and no script at all, is allowed.
    """
    style = (STATIC / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    app.jinja_env.globals["style"] = Markup(style)  # noqa: S704  (a file of this package)
    return {
        # Browsers ask for /favicon.ico by themselves.
        "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{digest}'; img-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }

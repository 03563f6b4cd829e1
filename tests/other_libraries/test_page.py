"""docs/other-libraries.md: what it shows is what the tests of this folder run."""

import re
import textwrap
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "other-libraries.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[block.strip().splitlines()[0] for block in BLOCKS])
def test_block_of_the_page_is_a_piece_of_a_test(block: str) -> None:
    """Word for word, but for how far it is indented, empty lines and docstrings of one line."""
    pieces = [strip(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("test_*.py"))]

    lines = strip(block)
    deeper = textwrap.indent(lines, "    ")
    assert any(lines in piece or deeper in piece for piece in pieces)


def strip(code: str) -> str:
    """Return *code* without empty lines and docstrings of one line."""
    return "\n".join(line for line in code.splitlines() if line.strip() and not line.strip().startswith('"""'))

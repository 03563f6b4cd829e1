"""The tutorial shows pieces of the example, and only such."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(?:python|sql)\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL)
EXAMPLE = [
    path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "examples" / "notes").rglob("*"))
    if path.suffix in (".py", ".sql")
]


def is_a_piece(block: str) -> bool:
    """Return whether *block* stands in a file of the example, letter by letter."""
    return any(block in text for text in EXAMPLE)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block_of_code_is_a_piece_of_the_example(block: str) -> None:
    """What a reader types is what the tests of the example run."""
    assert is_a_piece(block)


def test_changed_block_is_found() -> None:
    """A block that differs by one letter is no piece, and the tutorial has blocks."""
    assert len(BLOCKS) > 15
    assert not any(is_a_piece(f"{block[:-2]}~{block[-2:]}") for block in BLOCKS)

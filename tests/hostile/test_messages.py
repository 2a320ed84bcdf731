"""Messages are one line of plain text, whatever they quote."""

import pytest

from eenet.errors import EenetError, TableError
from eenet.tables import CostTable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\tand  tabs", "two lines and tabs"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("half \ud800 of a character", "half \\ud800 of a character"),
        ("\u202eright to left", "\\u202eright to left"),
        ("plain – ünïcode, 木", "plain – ünïcode, 木"),
    ],
)
def test_what_steers_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert str(EenetError(text)) == shown and shown.isprintable()


def test_the_middle_of_a_long_message_is_left_out() -> None:
    message = str(TableError("costs " + "x" * 5000 + " are wrong. Correct them."))
    assert message.startswith("costs xxx") and message.endswith("are wrong. Correct them.") and len(message) < 600
    with pytest.raises(TableError) as error:
        CostTable((2.0, 1.0), "ms" * 3000)
    assert len(str(error.value)) < 600

"""The terminal: rich at 80 columns, colour only where a person looks, plain characters in a pipe."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 80


def is_terminal() -> bool:
    """Whether stdout is a person's terminal that takes colour, and nobody said NO_COLOR."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(sys.stdout.isatty())


class Page:
    """Text under construction: for the terminal in colour, else plain."""

    def __init__(self, colour: bool) -> None:
        columns = shutil.get_terminal_size((WIDTH, 24)).columns if colour else WIDTH
        self.buffer = io.StringIO()
        self.fancy = colour
        self.width = max(40, min(WIDTH, columns))
        self.console = Console(
            file=self.buffer, width=self.width, force_terminal=colour, highlight=False,
            emoji=False, markup=False, no_color=not colour, legacy_windows=False,
        )  # fmt: skip

    def line(self, text: str = "", style: str = "") -> None:
        """A paragraph, wrapped."""
        self.console.print(Text(plain_text(text), style=style))

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str | Text]], title: str = ""
    ) -> None:
        """A table; the first column and those named `>...` (right-aligned) are never wrapped."""
        if title:
            self.line(title, "bold")
        shape = Table(box=box.SIMPLE_HEAD if self.fancy else PLAIN_BOX, pad_edge=False,
                      show_edge=False, header_style="bold", padding=(0, 1))  # fmt: skip
        for number, name in enumerate(columns):
            right = name.startswith(">")
            shape.add_column(name.lstrip(">"), justify="right" if right else "left",
                             overflow="fold", no_wrap=right or not number)  # fmt: skip
        for row in rows:
            shape.add_row(*(c if isinstance(c, Text) else Text(plain_text(c)) for c in row))
        if _least_width(columns, rows) > self.width:
            self.console.width = WIDTH  # a narrower one would cut figures; the terminal folds lines
        self.console.print(shape)
        self.console.width = self.width
        self.line()

    def text(self) -> str:
        """What was printed, without trailing blanks and with one empty line at most between parts."""
        lines = (line.rstrip() for line in self.buffer.getvalue().split("\n"))
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _least_width(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> int:
    """Columns a table takes with no figure cut and no word broken."""
    total = 3 * (len(columns) - 1)
    for number, name in enumerate(columns):
        cells = [name.lstrip(">"), *(str(row[number]) for row in rows)]
        whole = name.startswith(">") or not number
        total += max(
            cell_len(part) for cell in cells for part in ([cell] if whole else cell.split()) or [""]
        )
    return total


PLAIN_BOX = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def plain_text(text: str) -> str:
    """No control characters of a model's name reach the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def render(build: Callable[[Page], None], to_file: bool = False) -> str:
    """Run `build` on a page and return its text; a file never gets colour."""
    page = Page(colour=is_terminal() and not to_file)
    build(page)
    return page.text()

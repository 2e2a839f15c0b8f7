"""The only module that prints. Data goes to stdout, everything said to a person to stderr.

Tables are drawn for a terminal and plain, unwrapped columns in a pipe; colours follow the terminal
and NO_COLOR; progress is shown only where stderr is a terminal. Notes, prompts and parameters come
from other people: what a terminal would obey in them (colours, window titles, writes to the
clipboard, text that runs backwards) is written out instead, see ``visible``; so is what the
encoding of the stream does not have (``LANG=C``, the code pages of Windows).
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, TextIO

from cones_registry.progress_bar import Update, progress_bar

# Wide enough that no row of a table in a pipe is ever wrapped or cut.
PIPE_WIDTH = 100_000

PATIENCE: Final = 1.0
"""Seconds after which work that tells of itself gets a bar."""


# All control characters but tab and line feed, C1 ones and DEL included, and what turns the order
# of letters around or breaks lines without being a line feed.
_OBEYED: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """``text`` with everything that a terminal would obey written out, as ``\\x1b``."""
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


class ReaderGoneError(Exception):
    """The reader of a pipe (head, less) has seen enough."""


class Output:
    """Where one run of the command writes.

    Args:
        as_json: reading verbs write one JSON document instead of a table.
        data, messages: the two streams; sys.stdout and sys.stderr unless a test says otherwise.
    """

    def __init__(
        self, *, as_json: bool = False, data: TextIO | None = None, messages: TextIO | None = None
    ) -> None:
        self.as_json = as_json
        self._data = data
        self._messages = messages
        self._bar: tuple[str, Update, contextlib.ExitStack] | None = None
        self._since: tuple[str, float] = ("", 0.0)
        self._bars_open = 0

    @property
    def _stdout(self) -> TextIO:
        return self._data if self._data is not None else sys.stdout

    @property
    def _stderr(self) -> TextIO:
        return self._messages if self._messages is not None else sys.stderr

    def line(self, text: str) -> None:
        """One line of data."""
        _write(visible(text), self._stdout)

    def message(self, text: str) -> None:
        """One line for the person at the terminal."""
        self.close()
        _write(visible(text), self._stderr)

    def document(self, value: Any) -> None:
        """`value` (mappings, sequences, strings, numbers) as one JSON document.

        JSON has no NaN and no infinities; they are written as null. Decimals are numbers, unless
        they have more digits than a float; whatever else JSON does not know is text.
        """
        try:
            text = _json(value)
        except ValueError:
            text = _json(_finite(value))
        _write(_in_encoding(_OBEYED.sub(_json_escape, text), self._stdout), self._stdout)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table of text; columns whose cells are all numbers or quantities stand to the right."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        # A line feed would make one row look like two.
        cells = [
            ["" if cell is None else str(cell).replace("\n", r"\n") for cell in row] for row in rows
        ]
        # No rule under the heading in a pipe: every line is a row.
        frame = box.SIMPLE_HEAD if self._stdout.isatty() else None
        table = Table(box=frame, pad_edge=False, show_edge=False, header_style="bold")
        for position, column in enumerate(columns):
            numeric = bool(cells) and all(row[position][:1].isdigit() for row in cells)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in cells:
            table.add_row(*(_plain(cell) for cell in row))
        self._render(Console, table)

    def fields(self, pairs: Mapping[str, object]) -> None:
        """One record: a name and a value on each line; empty values are left out."""
        from rich.console import Console
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in pairs.items():
            if value is not None and value != "":
                table.add_row(name, _plain(str(value)))
        self._render(Console, table)

    def csv(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """The rows as CSV with a heading, for spreadsheets."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        written = text.getvalue().rstrip("\n")
        _write(visible(written) if self._stdout.isatty() else written, self._stdout)

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Update]:
        """A progress bar named `title` while the block runs, on a terminal only."""
        self.close()
        self._bars_open += 1
        try:
            with progress_bar(visible(title), self._stderr) as update:
                yield update
        finally:
            self._bars_open -= 1

    def told(self, what: str, done: int, total: int) -> None:
        """Show how far long work is: a bar from the moment on that it takes `PATIENCE` seconds.

        Work within a block that has a bar of its own is not shown: a terminal has one bar.
        """
        if self._bars_open or not self._stderr.isatty():
            return
        if self._since[0] != what:
            self.close()
            self._since = (what, time.monotonic())
        if self._bar is None and done < total and time.monotonic() - self._since[1] >= PATIENCE:
            stack = contextlib.ExitStack()
            update = stack.enter_context(progress_bar(visible(what), self._stderr))
            self._bar = (what, update, stack)
        if self._bar is not None:
            self._bar[1](done, total)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Take away the bar of what was told last."""
        if self._bar is not None:
            self._bar[2].close()
        self._bar, self._since = None, ("", 0.0)

    def _render(self, console_class: Any, table: Any) -> None:
        stream = self._stdout
        if stream.isatty():
            console_class(file=stream, highlight=False).print(table)
            return
        text = io.StringIO()
        console_class(file=text, width=PIPE_WIDTH, highlight=False, no_color=True).print(table)
        self.line("\n".join(line.rstrip() for line in text.getvalue().rstrip("\n").split("\n")))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=_number_or_text, allow_nan=False)


def _number_or_text(value: Any) -> Any:
    if isinstance(value, Decimal):
        number = float(value)
        # A number of so many digits that readers of JSON would lose some is text.
        return number if Decimal(repr(number)) == value else str(value)
    return str(value)


def _json_escape(match: re.Match[str]) -> str:
    """The same character, as JSON escapes it."""
    return json.dumps(match[0])[1:-1]


def _in_encoding(document: str, stream: TextIO) -> str:
    """JSON in which every letter that ``stream`` cannot write is escaped as JSON does."""
    encoding = stream.encoding or "utf-8"
    try:
        document.encode(encoding)
        return document
    except UnicodeEncodeError:
        return re.sub(r"[^\x00-\x7f]", _json_escape, document)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(text: str) -> Any:
    """`text` as it is: a note that holds [brackets] is no markup."""
    from rich.text import Text

    return Text(visible(text))


def _write(text: str, stream: TextIO) -> None:
    """One line; letters that the stream's encoding does not have are written as escapes."""
    try:
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            escaped = text.encode(encoding, "backslashreplace").decode(encoding)
            print(escaped, file=stream, flush=True)
    except BrokenPipeError:
        # click ends the command with exit code 1 on any EPIPE; to us it is no failure.
        raise ReaderGoneError from None

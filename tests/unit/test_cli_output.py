"""How the command writes: units, tables in a pipe, JSON, CSV, nothing on the wrong stream."""

from __future__ import annotations

import io
import json

import pytest

from cones_registry.cli.output import Output
from cones_registry.quantities import share, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (19_412, "19.4 kB"),
        (999_600, "1 MB"),
        (76_700_000, "76.7 MB"),
        (10**18, "1e+03 PB"),
    ],
)
def test_sizes_are_decimal_with_three_digits(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("fraction", "text"), [(0, "0 %"), (0.08417, "8.42 %"), (1, "100 %"), (0.000123, "0.0123 %")]
)
def test_shares_are_percent_with_three_digits(fraction: float, text: str) -> None:
    assert share(fraction) == text


def written() -> tuple[Output, io.StringIO, io.StringIO]:
    data, messages = io.StringIO(), io.StringIO()
    return Output(data=data, messages=messages), data, messages


def test_a_table_in_a_pipe_has_no_colour_and_never_wraps() -> None:
    output, data, messages = written()
    output.table(("ref", "note"), [("local/dog:1", "x" * 500), ("local/cat:1", None)])
    lines = data.getvalue().splitlines()
    assert lines[0].split() == ["ref", "note"]
    assert lines[1].split() == ["local/dog:1", "x" * 500]
    assert lines[2] == "local/cat:1"
    assert "\x1b" not in data.getvalue()
    assert messages.getvalue() == ""


def test_brackets_in_data_are_no_markup() -> None:
    output, data, _ = written()
    output.fields({"note": "[bold]not bold[/bold]", "empty": "", "none": None, "zero": 0})
    assert data.getvalue() == "note  [bold]not bold[/bold]\nzero  0\n"


def test_json_keeps_every_letter() -> None:
    output, data, _ = written()
    output.document({"note": "Löwe"})
    assert json.loads(data.getvalue()) == {"note": "Löwe"}
    assert "Löwe" in data.getvalue()


def test_json_writes_what_is_no_number_as_null() -> None:
    output, data, _ = written()
    rows = [{"a": float("nan"), "b": [float("inf"), 0.5]}, {"c": (float("-inf"), "NaN")}]
    output.document(rows)
    expected = [{"a": None, "b": [None, 0.5]}, {"c": [None, "NaN"]}]
    assert json.loads(data.getvalue(), parse_constant=pytest.fail) == expected


def test_csv_quotes_what_needs_quotes() -> None:
    output, data, _ = written()
    output.csv(("a", "b"), [("1,2", 'say "x"')])
    assert data.getvalue() == 'a,b\n"1,2","say ""x"""\n'


def test_progress_is_silent_where_nobody_watches() -> None:
    output, data, messages = written()
    with output.progress("learning") as update:
        update(1, 2, "loss 0.5")
    assert data.getvalue() == messages.getvalue() == ""


HOSTILE = {
    "writes the clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "sets the title": "\x1b]0;owned\x1b\\",
    "clears the screen": "\x1b[2J\x1b[H",
    "is one 8-bit control": "\x9b2J",
    "goes back over the line": "good\rbad\x08\x08",
    "runs backwards": "\u202egnp.exe\u2066",
    "is half a letter": "\udc80",
}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_nothing_from_outside_reaches_the_terminal_as_a_command(
    text: str, stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    data, messages = stream(), stream()
    output = Output(data=data, messages=messages)
    output.line(f"alice/dog {text}")
    output.message(f"error: {text}")
    output.table(("ref", "note"), [("alice/dog:1", text)])
    output.fields({"note": text})
    output.document({"note": text})
    if stream is Terminal:
        output.csv(("note",), [(text,)])
    written = data.getvalue() + messages.getvalue()
    obeyed = {character for character in text if not character.isprintable()}
    assert obeyed
    assert not obeyed & set(written)


def test_json_escapes_what_a_terminal_obeys_and_means_the_same() -> None:
    output, data, _ = written()
    output.document({"note": "\x9b2J\u202e é"})
    assert data.getvalue() == '{\n  "note": "\\u009b2J\\u202e é"\n}\n'
    assert json.loads(data.getvalue()) == {"note": "\x9b2J\u202e é"}


def test_a_line_feed_in_a_cell_makes_no_second_row() -> None:
    output, data, _ = written()
    output.table(("ref", "note"), [("alice/dog:1", "one\nbob/cat:1")])
    assert len(data.getvalue().splitlines()) == 2


def test_work_that_tells_of_itself_gets_a_bar_once_it_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    messages = Terminal()
    output = Output(data=io.StringIO(), messages=messages)
    output.told("exporting", 1, 3)
    assert messages.getvalue() == ""
    monkeypatch.setattr("cones_registry.cli.output.PATIENCE", 0.0)
    output.told("exporting", 2, 3)
    assert "exporting" in messages.getvalue()
    output.told("exporting", 3, 3)
    length = len(messages.getvalue())
    with output.progress("drawing"):
        output.told("reading the catalogue", 1, 2)
    assert "reading the catalogue" not in messages.getvalue()[length:]
    quiet = io.StringIO()
    Output(data=io.StringIO(), messages=quiet).told("exporting", 1, 3)
    assert quiet.getvalue() == ""

"""Letters that a stream cannot write are escaped, and the command goes on."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cones_registry.cli.output import Output
from cones_registry.cli.runs import read_lines
from cones_registry.errors import UsageError
from cones_registry.registry import Registry

TEXT = "größe 犬 🐕"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "latin-1", "utf-8"])
def test_every_way_of_writing_survives_every_encoding(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    output = Output(data=stream, messages=stream)
    output.line(TEXT)
    output.message(TEXT)
    output.table(("tag",), [(TEXT,)])
    output.fields({"tag": TEXT})
    output.csv(("tag",), [(TEXT,)])
    stream.flush()
    written = raw.getvalue().decode(encoding)
    assert written.count("gr") == 5
    assert ("größe" in written) == (encoding != "ascii")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_stays_json_in_every_encoding(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    Output(data=stream).document({TEXT: [TEXT, "\u2028\x1b[31m"]})
    stream.flush()
    assert json.loads(raw.getvalue().decode(encoding)) == {TEXT: [TEXT, "\u2028\x1b[31m"]}


def test_a_list_with_an_umlaut_is_written_on_an_old_terminal(
    tmp_path: Path, random_mask: Callable[..., object]
) -> None:
    from cones_registry.layers import LayerTable

    table = LayerTable.from_shapes({"a.attn2.to_k.weight": (4, 4)})
    with Registry.create(str(tmp_path / "kept")) as registry:
        mask = random_mask(table)
        registry.push("ann/dog", mask, scope="prompt", base="sha256:" + "0" * 64, tags=["größe"])
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "cones_registry.cli", "-r", str(tmp_path / "kept"), "list"]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"gr\xf6\xdfe" in done.stdout


def test_lines_from_a_pipe_are_utf_8_whatever_the_terminal_is_set_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = json.dumps({"prompt": TEXT}, ensure_ascii=False)
    pipe = io.TextIOWrapper(io.BytesIO(("\ufeff" + line).encode()), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", pipe)
    assert read_lines(Path("-")) == line
    broken = io.TextIOWrapper(io.BytesIO(b'{"prompt": "gr\xf6\xdfe"}'), encoding="latin-1")
    monkeypatch.setattr(sys, "stdin", broken)
    with pytest.raises(UsageError, match="not UTF-8"):
        read_lines(Path("-"))

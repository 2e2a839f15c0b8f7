"""Every script in tools/ can be loaded: one that nobody ran lately has not lost what it imports."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NAMES = sorted(path.stem for path in TOOLS.glob("*.py"))
APART = {
    "fuzz_codec": "atheris",
    "fuzz_photos": "atheris",
    "fuzzing": "atheris",
    "make_drawings": "resvg_py",
}
"""Tools that set up a library of their own, which tests are run without."""


@pytest.mark.parametrize("name", NAMES)
def test_a_tool_finds_all_that_it_imports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in APART:
        pytest.importorskip(APART[name])
    monkeypatch.syspath_prepend(str(TOOLS))
    try:
        importlib.import_module(name)
    finally:
        for loaded in NAMES:  # plain names, which the modules of tests may have too
            sys.modules.pop(loaded, None)

"""Every script in tools/ can be loaded: one that nobody ran lately has not lost what it imports."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NAMES = sorted(path.stem for path in TOOLS.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_tool_finds_all_that_it_imports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    try:
        importlib.import_module(name)
    finally:
        for loaded in NAMES:  # plain names, which the modules of tests may have too
            sys.modules.pop(loaded, None)

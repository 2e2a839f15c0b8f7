"""README's commands and Python blocks do what README says, run in order in one empty folder.

A block fenced as `bash` or `python` is run. A word behind the language says what it needs beyond
this machine (`bash cloud`), and leaves it out; a plain fence shows something, and is not run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from fenced_blocks import Block, blocks, run_block

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
RUN = ("bash", "python")
# What a block may need that a test cannot have.
NEEDS = ("cloud",)


ALL = blocks(README.read_text("utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader stands: a checkout, as far as the blocks can see."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "cones_registry").symlink_to(ROOT / "cones_registry")
    return folder


@pytest.mark.parametrize(
    "block",
    [block for block in ALL if block.language in RUN and not block.needs],
    ids=lambda block: f"line-{block.line}",
)
def test_every_block_runs(block: Block, folder: Path) -> None:
    environment = {
        **os.environ,
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
    }
    # As the one who reads from top to bottom has it after the line that exports it.
    if "export CONES_REGISTRY" in README.read_text("utf-8")[: position(block)]:
        environment["CONES_REGISTRY"] = "concepts"
    else:
        environment.pop("CONES_REGISTRY", None)
    done = run_block(block, folder, environment)
    assert done.returncode == 0, f"README.md line {block.line}:\n{done.stdout[-4000:]}"


def test_photos_become_a_picture_of_two_peoples_concepts_in_four_commands(folder: Path) -> None:
    """Without a token in sight: concepts go by the names they were pushed under."""
    from cones_registry.generation import read_recipe

    block = next(block for block in ALL if "cones extract" in block.text)
    commands = re.findall(r"^cones (\w+)", block.text, re.MULTILINE)
    assert commands == ["init", "extract", "extract", "generate"]
    if not (folder / "both.png").exists():  # this test was asked for by itself
        test_every_block_runs(block, folder)
    concepts = read_recipe(folder / "both.png")["concepts"]
    assert {each["ref"] for each in concepts} == {"alice/buoy:1", "bob/crate:1"}
    assert "token" not in block.text
    assert not any(re.search(rf"\b{each['token']}\b", block.text) for each in concepts)


def position(block: Block) -> int:
    """Where the block starts in README, in characters."""
    return sum(len(line) for line in README.read_text("utf-8").splitlines(True)[: block.line - 1])


def test_what_is_left_out_says_why() -> None:
    assert {block.needs for block in ALL if block.needs} <= set(NEEDS)


def test_the_first_screen_names_exactly_the_two_commands() -> None:
    first_screen = "\n".join(README.read_text("utf-8").splitlines()[:40])
    commands = re.findall(r"^(tools/\w+)", first_screen, re.MULTILINE)
    assert commands == ["tools/demo", "tools/test"]
    for command in commands:
        assert os.access(ROOT / command, os.X_OK)


def test_the_picture_at_the_top_is_in_the_repository() -> None:
    picture = re.search(r"!\[[^\]]+\]\(([^)]+)\)", README.read_text("utf-8"))
    assert picture is not None
    assert (ROOT / picture[1]).is_file()

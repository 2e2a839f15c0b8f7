"""pyproject.toml, the pins and the scripts say the same thing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT_TEXT = (ROOT / "pyproject.toml").read_text("utf-8")
PROJECT = tomllib.loads(PROJECT_TEXT)["project"]
BUILD: list[str] = tomllib.loads(PROJECT_TEXT)["build-system"]["requires"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
GROUPS: dict[str, list[str]] = tomllib.loads(PROJECT_TEXT)["dependency-groups"]
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(each for chosen in (*EXTRAS.values(), *GROUPS.values()) for each in chosen),
]


def canonical(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_every_dependency_is_pinned_and_once_only() -> None:
    pins = [
        canonical(line)
        for line in (ROOT / "tools" / "constraints.txt").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert len(pins) == len(set(pins))
    assert {canonical(each) for each in [*BUILD, *REQUIREMENTS]} <= set(pins)


def test_every_dependency_says_what_it_is_for() -> None:
    listed = re.findall(r'^ *(?:[\w-]+ = \[)?"[\w\[\]-]+>=[^"]+",?\]?,?(.*)$', PROJECT_TEXT, re.M)
    assert len(listed) == len(REQUIREMENTS) + len(BUILD)
    assert [line for line in listed if "# " not in line] == []


def test_the_core_needs_no_model_library() -> None:
    core = {canonical(each) for each in PROJECT["dependencies"]}
    assert core.isdisjoint({"torch", "diffusers", "transformers", "accelerate", "pillow"})


def test_the_doctor_knows_every_extra_and_the_failures_know_every_module() -> None:
    from cones_registry.cli.doctor import CORE
    from cones_registry.cli.doctor import EXTRAS as KNOWN
    from cones_registry.cli.failures import EXTRA_OF_MODULE

    assert set(KNOWN) == set(EXTRAS)
    assert set(EXTRA_OF_MODULE.values()) == set(EXTRAS)
    for extra, (_, packages) in KNOWN.items():
        assert {canonical(each) for each in EXTRAS[extra]} == {canonical(p) for p in packages}
    assert {canonical(each) for each in CORE} == {
        canonical(each) for each in [PROJECT["name"], *PROJECT["dependencies"]]
    }


def test_developers_tools_are_not_published() -> None:
    assert set(GROUPS) == {"bench", "check", "test"}
    assert not set(GROUPS) & set(EXTRAS)


def test_the_versions_of_the_package_agree() -> None:
    import cones_registry

    assert cones_registry.__version__ == PROJECT["version"]
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = re.search(r"^## (\S+)", changes, re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["version"]

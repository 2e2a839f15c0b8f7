"""What holds for the command as a whole, whatever the verb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cones_registry import cli, errors
from cones_registry.cli import group
from cones_registry.cli.failures import exit_code

ROOT = Path(__file__).resolve().parents[2]
VERBS = [verb for verbs in group.SECTIONS.values() for verb in verbs]
# Exit code -> the class that ends the command with it (design: one exit code per class).
CLASSES = {
    1: errors.ConesError,
    2: errors.UsageError,
    10: errors.NotFoundError,
    11: errors.ConflictError,
    12: errors.BaseModelMismatchError,
    13: errors.CorruptDataError,
    14: errors.StoreUnavailableError,
    15: errors.MissingExtraError,
    16: errors.LimitExceededError,
}


def python(code: str, *, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    return done.stdout


def test_help_imports_neither_torch_nor_duckdb_nor_anything_else_that_is_large() -> None:
    large = "{'torch', 'duckdb', 'pyarrow', 'numpy', 'diffusers', 'transformers', 'rich', 'fsspec'}"
    printed = python(
        "import sys, io, contextlib\n"
        "from cones_registry.cli import run\n"
        "with contextlib.redirect_stdout(io.StringIO()) as text:\n"
        "    code = run(['--help'])\n"
        "assert code == 0 and 'Exit codes' in text.getvalue()\n"
        f"print(sorted({large} & set(sys.modules)))"
    )
    assert printed.strip() == "[]"


def test_help_lists_every_verb_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in VERBS:
        assert f"\n  {verb} " in text
    for code, meaning in errors.EXIT_CODES.items():
        assert f"{code:>3}  {meaning}\n" in text


def test_every_verb_of_the_table_has_a_module_and_every_module_with_a_command_is_in_the_table() -> (
    None
):
    folder = ROOT / "cones_registry" / "cli"
    modules = {
        path.stem.rstrip("_")
        for path in folder.glob("*.py")
        if "\ndef command(" in path.read_text("utf-8")
    }
    assert modules == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: cones {verb}")
    assert "--debug" in text


@pytest.mark.parametrize(("code", "error"), CLASSES.items())
def test_every_error_class_ends_the_command_with_its_own_exit_code(
    code: int, error: type[errors.ConesError]
) -> None:
    assert exit_code(error("x")) == code
    assert code in errors.EXIT_CODES


def test_the_exit_codes_of_the_help_are_those_of_the_classes() -> None:
    assert set(errors.EXIT_CODES) == {0, *CLASSES}


def test_ctrl_c_is_130_and_an_unforeseen_error_is_1() -> None:
    assert exit_code(KeyboardInterrupt()) == 130
    assert exit_code(click.Abort()) == 130
    assert exit_code(RuntimeError("x")) == 1


def test_a_module_that_is_not_installed_names_the_extra_that_brings_it() -> None:
    missing = ModuleNotFoundError("No module named 'torch'", name="torch")
    assert exit_code(missing) == 15


@pytest.mark.parametrize(("typed", "meant"), [("pul", "pull"), ("exstract", "extract")])
def test_a_mistyped_verb_names_the_one_that_was_meant(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([typed]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"there is no verb '{typed}'. Did you mean: " in captured.err
    assert meant in captured.err


def test_without_a_registry_the_message_says_how_to_name_or_make_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONES_REGISTRY", raising=False)
    assert cli.run(["show", "dog"]) == 2
    error = capsys.readouterr().err
    assert "CONES_REGISTRY" in error
    assert "cones init" in error
    assert "Traceback" not in error


def test_debug_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONES_REGISTRY", raising=False)
    assert cli.run(["show", "dog", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["-r", "{url}", "list"], ["list", "-r", "{url}"]])
def test_the_registry_may_be_named_before_or_after_the_verb(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "concepts")
    assert cli.run(["init", url]) == 0
    assert cli.run([argument.format(url=url) for argument in arguments] + ["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_storage_option_that_is_no_assignment_is_a_usage_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["list", "--storage-option", "anon", "-r", "x"]) == 2
    assert "expected KEY=VALUE" in capsys.readouterr().err


def test_only_the_output_module_prints() -> None:
    package = ROOT / "cones_registry"
    printing = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "print(" in path.read_text("utf-8").replace("fingerprint(", "").replace(".print(", "")
    }
    assert printing <= {"cli/output.py"}


def test_the_installed_command_is_the_same_as_the_module() -> None:
    from importlib.metadata import entry_points

    (point,) = (p for p in entry_points(group="console_scripts") if p.name == "cones")
    assert point.load() is cli.main


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m cones_registry.cli cache ls --json"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; (sleep 0.2; {command}) | true"],
        env={**os.environ, "CONES_CACHE": str(tmp_path)},
        check=False,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")

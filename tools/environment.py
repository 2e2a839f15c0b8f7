"""Bring the virtual environment `.venv` up to date: made once, then only checked.

Needs nothing but Python 3.11 or newer. The packages are those that pyproject.toml asks for, in the
versions that tools/constraints.txt pins. A stamp in the environment holds the digest of both files
and the extras and groups that are installed, so that a second run costs milliseconds. An
environment that is there already, whoever made it, is brought up to date and never made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "cones-environment.json"
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
AZURITE = VENV / "azurite"
AZURITE_PACKAGE = "azurite@3.37.0"
OLDEST_PYTHON = (3, 11)
# The tests run every part of the package.
STORES = ("s3", "azure", "gcs")
TEST_EXTRAS = (
    "model",
    *STORES,
    "ray",
    "plot",
    "delta",
    "fast",
    "gallery",
    "serve",
    "serve-ray",
    "bench",
    "test",
)
# The storage side's: what an admin's machine without torch does.
STORAGE_EXTRAS = ("s3", "gallery")
STORAGE_TEST_TOOLS = ("pytest", "hypothesis", "jsonschema", "moto[server]", "ministack")
STORAGE_TESTS = (
    *("tests/golden", "tests/simulation", "tests/property/test_catalog_runs.py"),
    *("tests/property/test_codec_hostile.py", "tests/property/test_codec_round_trip.py"),
    *("tests/property/test_mask_algebra.py", "tests/property/test_registry_model.py"),
    *("tests/property/test_resolver_counts.py", "tests/integration/test_s3_registry.py"),
    *("tests/integration/test_s3_store.py", "tests/docs/test_schemas.py"),
    *(
        f"tests/unit/test_{name}.py"
        for name in (
            *("catalog_chain", "catalog_formats", "catalog_query", "cli_listing", "cli_output"),
            *("cli_storage", "codec_class", "codec_refusals", "digest", "errors", "filters"),
            *("foreign_disks", "mask", "pages_gallery", "plan_files", "ranking", "record_field"),
            *("registry_check", "registry_keys", "registry_purge", "registry_similar"),
            *("registry_sync", "registry_upkeep", "resolver", "resolver_sketch", "store"),
            *("store_faults", "store_probe"),
        )
    ),
)
# What builds the package in place; installed first, so that its version is pinned too.
BUILD_REQUIREMENTS = ("hatchling",)


def prepare(*extras: str) -> Path:
    """Make sure that `.venv` holds the package with `extras`; return its Python interpreter.

    extras: of the package, or names of its dependency groups.

    Raises SystemExit with a message that says what to do when Python is too old or a step fails.
    """
    wanted = _digest()
    stamp = _read_stamp()
    current = stamp.get("digest") == wanted
    installed = set(stamp.get("extras", ()))
    if current and set(extras) <= installed and _python().exists():
        return _python()
    # What another command has asked for stays, so that two commands do not undo each other.
    all_extras = sorted(installed | set(extras))
    if not _python().exists():
        _say(f"making {VENV} (once)")
        _make_environment()
    _say(f"installing the package with {', '.join(all_extras)} (some minutes the first time)")
    pip = [str(_python()), "-m", "pip", "install", "--quiet", "--no-compile"]
    pip += ["--disable-pip-version-check", "--constraint", str(CONSTRAINTS)]
    _call([*pip, *BUILD_REQUIREMENTS])
    groups = dependency_groups()
    published = ",".join(extra for extra in all_extras if extra not in groups)
    tools = [each for extra in all_extras for each in groups.get(extra, ())]
    _call([*pip, "--no-build-isolation", *tools, "--editable", f"{ROOT}[{published}]"])
    STAMP.write_text(json.dumps({"digest": wanted, "extras": all_extras}), encoding="utf-8")
    return _python()


def prepare_storage(version: str) -> Path:
    """Make sure that `.venv-VERSION` holds the package without torch; return its interpreter.

    version: of Python, as 3.13.

    Raises SystemExit where no such Python is on the machine.
    """
    place = ROOT / f".venv-{version}"
    python = place / "bin" / "python"
    stamp = place / "cones-environment.json"
    if python.exists() and stamp.exists() and stamp.read_text("utf-8") == _digest():
        return python
    if not python.exists():
        _say(f"making {place} (once)")
        _call([_find_python(version), "-m", "venv", str(place)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--constraint", str(CONSTRAINTS)]
    _call([*pip, *BUILD_REQUIREMENTS])
    package = f"{ROOT}[{','.join(STORAGE_EXTRAS)}]"
    _call([*pip, "--no-build-isolation", *STORAGE_TEST_TOOLS, "--editable", package])
    stamp.write_text(_digest(), encoding="utf-8")
    return python


def _find_python(version: str) -> str:
    """A Python of a version: on the PATH, or one of pyenv's or uv's."""
    homes = (
        Path.home() / ".pyenv" / "versions",
        Path.home() / ".local" / "share" / "uv" / "python",
    )
    kept = [path for home in homes for path in home.glob(f"*{version}.*/bin/python{version}")]
    for candidate in (shutil.which(f"python{version}"), *map(str, sorted(kept))):
        # pyenv's own commands stand on the PATH for versions that are not chosen too.
        if candidate and _answers(candidate, version):
            return candidate
    _stop(
        f"no Python {version} is on the PATH, of pyenv or of uv. "
        f"To get one: pyenv install {version}"
    )


def _answers(candidate: str, version: str) -> bool:
    script = "import sys; print('{}.{}'.format(*sys.version_info))"
    done = subprocess.run([candidate, "-c", script], check=False, capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() == version


def dependency_groups() -> dict[str, list[str]]:
    """Developers' tools by group (PEP 735), read by the environment's own Python."""
    script = (
        "import json, sys, tomllib; "
        "print(json.dumps(tomllib.load(open(sys.argv[1], 'rb'))['dependency-groups']))"
    )
    command = [str(_python()), "-c", script, str(ROOT / "pyproject.toml")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    groups: dict[str, list[str]] = json.loads(done.stdout)
    return groups


def prepare_azurite() -> None:
    """Install the Azure test server beside the packages where npm is there; else say it is not.

    The tests that need it are skipped, with the reason, where it is missing.
    """
    npm = shutil.which("npm")
    if npm is None:
        _say("npm is not on the PATH: the tests on Azure Blob Storage will be skipped")
        return
    if (AZURITE / "node_modules" / "azurite" / "package.json").exists():
        return
    _say(f"installing {AZURITE_PACKAGE}, the Azure test server (once)")
    quiet = ["--no-save", "--no-audit", "--no-fund", "--loglevel", "error"]
    AZURITE.mkdir(exist_ok=True)
    done = subprocess.run(
        [npm, "install", "--prefix", str(AZURITE), *quiet, AZURITE_PACKAGE], check=False
    )
    if done.returncode != 0:
        _say("npm could not install it: the tests on Azure Blob Storage will be skipped")


def run(command: list[str]) -> int:
    """Run `command` in the repository's folder with this terminal; return its exit code."""
    # Where the tests look for the Azure test server, unless the caller has one elsewhere.
    settings = {"AZURITE_HOME": str(AZURITE), **os.environ}
    # Modules are compiled once, beside the packages: compiling torch and its kin anew costs each
    # process, and tests start hundreds, ten seconds and more.
    settings.pop("PYTHONDONTWRITEBYTECODE", None)
    settings.setdefault("PYTHONPYCACHEPREFIX", str(VENV / "compiled"))
    try:
        return subprocess.run(command, cwd=ROOT, env=settings, check=False).returncode
    except KeyboardInterrupt:
        return 130


def _digest() -> str:
    content = hashlib.sha256()
    for path in (ROOT / "pyproject.toml", CONSTRAINTS):
        content.update(path.read_bytes())
    return content.hexdigest()


def _read_stamp() -> dict[str, object]:
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _python() -> Path:
    folder, name = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return VENV / folder / name


def _make_environment() -> None:
    done = subprocess.run([_new_enough_python(), "-m", "venv", str(VENV)], check=False)
    if done.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        _stop(
            f"Python could not make a virtual environment in {VENV}. On Debian and Ubuntu the"
            " module for it is a package of its own: apt-get install python3-venv"
        )


def _new_enough_python() -> str:
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return sys.executable
    for minor in (13, 12, 11):
        found = shutil.which(f"python3.{minor}")
        if found:
            return found
    have = ".".join(map(str, sys.version_info[:3]))
    _stop(f"this is Python {have}; 3.11 or newer is needed, and no python3.11 is on the PATH")


def _call(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode != 0:
        _stop(f"setting up failed (exit code {done.returncode}) at: {' '.join(command)}")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _stop(message: str):
    _say(f"error: {message}")
    raise SystemExit(1)

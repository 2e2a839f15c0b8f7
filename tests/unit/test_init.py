"""The package's front door: which names there are, and what importing it costs."""

import subprocess
import sys
from pathlib import Path

import pytest

import cones_registry

ROOT = Path(cones_registry.__file__).parent
STORAGE_SIDE = [
    "codec",
    "record",
    "mask",
    "layers",
    "refs",
    "factors",
    "bitmap",
    "digest",
    "errors",
]
HEAVY = {"torch", "diffusers", "transformers", "numpy", "pyarrow", "duckdb"}


def modules_after(code: str) -> set[str]:
    """Top-level modules that are loaded after `code` ran in a fresh interpreter."""
    script = f"{code}\nimport sys; sys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert modules_after("import cones_registry").isdisjoint(HEAVY)


def test_the_storage_side_loads_no_torch() -> None:
    code = "; ".join(f"import cones_registry.{name}" for name in STORAGE_SIDE)

    assert modules_after(code).isdisjoint({"torch", "diffusers", "transformers"})


def test_the_names_of_the_storage_side_load_no_torch() -> None:
    names = "LayerTable, ConceptMask, Concept, encode, decode, save_file, load_file, ConesError"

    assert "torch" not in modules_after(f"from cones_registry import {names}")


def test_every_public_name_is_there() -> None:
    for name in cones_registry.__all__:
        assert getattr(cones_registry, name) is not None
        assert name in dir(cones_registry)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Mask'"):
        _ = cones_registry.Mask


def test_without_torch_the_model_side_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import cones_registry as c\n"
        "from cones_registry import ConceptMask\n"
        "try: c.BaseModel\n"
        "except c.ConesError as error: sys.stderr.write(str(error)); assert error.exit_code == 15\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )

    assert "pip install 'cones-registry[model]'" in done.stderr


def test_the_package_is_marked_as_typed() -> None:
    assert (ROOT / "py.typed").is_file()

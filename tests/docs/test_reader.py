"""The example reader of schema/ knows nothing of the package, and reads what the package writes."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry, decode

ROOT = Path(__file__).parents[2]
READER = ROOT / "schema" / "examples" / "reader.py"
TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (16, 16)})
MASKS = sorted((ROOT / "tests" / "golden").glob("mask-*.parquet"))


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reader", READER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reader_is_short_and_imports_nothing_of_the_package() -> None:
    text = READER.read_text("utf-8")
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {each.name.split(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    assert names == {"hashlib", "io", "json", "pathlib", "numpy", "pyarrow", "zstandard"}
    assert len(text.splitlines()) < 120


@pytest.mark.parametrize("path", MASKS, ids=lambda path: path.stem)
def test_the_reader_reads_a_mask_of_each_layout(reader: ModuleType, path: Path) -> None:
    mask = decode(path.read_bytes())
    found = reader.read_mask(path)
    assert list(found) == list(mask.table.names)
    for name, (indices, _) in found.items():
        assert np.array_equal(indices, mask.indices(name)), name
    if mask.factors is None:
        assert all(factors is None for _, factors in found.values())
    else:
        factors = np.concatenate([factors for _, factors in found.values()])
        assert np.array_equal(factors.astype(np.float32), mask.factors.astype(np.float32))


def test_the_reader_lists_what_the_package_lists(reader: ModuleType, tmp_path: Path) -> None:
    registry = Registry.create(tmp_path / "concepts", cache=tmp_path / "cache")

    def push(ref: str, member: int) -> None:
        indices = {TABLE.names[0]: np.array([member], dtype=np.int32)}
        mask = ConceptMask.from_indices(TABLE, indices)
        registry.push(ref, mask, scope="prompt", tags=["new", "small"])

    def agree() -> None:
        used, aliases = reader.read_registry(tmp_path / "concepts")
        listed = registry.find()
        assert {concept.place for concept in listed} == used.keys()
        for concept in listed:
            assert tuple(used[concept.place]["tags"]) == concept.tags
            assert used[concept.place]["mask_digest"] == concept.mask_digest
            its = [key[2] for key, n in aliases.items() if (*key[:2], n) == concept.place]
            assert tuple(sorted(its)) == concept.aliases

    agree()
    for round in range(3):  # with nothing folded, with all of it, and with news above it
        push("alice/dog", 3 * round)
        push("alice/cat", 3 * round + 1)
        push("bob/star", 3 * round + 2)
        registry.alias(f"alice/dog:{round + 1}", "prod")
        registry.tag(f"alice/cat:{round + 1}", add=["seen"], remove=["new"])
        registry.remove(f"bob/star:{round + 1}")
        agree()
        registry.compact(grace=0)
        registry.tag("alice/cat:1", add=["new"], remove=["seen"])
        registry.restore("bob/star:1")
        agree()
        registry.remove("bob/star:1")
    registry.plan_purge(ref="alice/cat").execute()
    agree()

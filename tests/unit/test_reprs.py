"""What a person sees of the package's values at a prompt: a line, never an array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cones_registry.extraction import Extraction
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask
from cones_registry.record import Provenance
from cones_registry.registry import Registry


def test_a_value_is_shown_in_one_line(tmp_path: Path) -> None:
    table = LayerTable.from_shapes({f"block.{n}.to_k.weight": (40, 50) for n in range(16)})
    assert repr(table) == (
        "LayerTable(16 layers, 32,000 neurons, block.0.to_k.weight … block.15.to_k.weight)"
    )
    mask = ConceptMask.from_indices(table, {"block.0.to_k.weight": list(range(320))})
    history = tuple({"step": step, "loss": 0.5} for step in range(300))
    provenance = Provenance(method="gates", history=history)
    scores: Any = {layer.name: [[0.0] * 50] * 40 for layer in table.layers}
    extraction = Extraction(mask, "subject", "sks", "dog", provenance, history, scores)
    assert repr(extraction) == (
        "Extraction('sks' 'dog', scope subject, method gates, "
        "ConceptMask(320 of 32000 neurons in 16 layers, binary, density 1.000%))"
    )
    with Registry.create(tmp_path / "concepts", cache=tmp_path / "cache") as registry:
        registry.push("alice/dog", mask, scope="prompt", token="sks", class_noun="dog")
        assert repr(registry) == f"Registry({registry.url!r})"
        composition = registry.resolve("alice/dog")
        assert repr(composition) == (
            f"Composition(alice/dog:1: 1.00% of 32,000 neurons, base {composition.base[:19]}…)"
        )
        concept = registry.get("alice/dog")
        assert concept.usage == "a sks dog"
    reader = Registry.open(tmp_path / "concepts", read_only=True, cache=tmp_path / "cache")
    assert repr(reader) == f"Registry({reader.url!r}, read only)"

"""Rows under a mask: every way of computing them gives what the whole W ∘ M gives."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

import cones_registry.attention.weights as weights_module
from cones_registry.attention import RowEdit, mask_weights, project_text
from cones_registry.attention.weights import SPARSE_NEURONS
from cones_registry.base_model import BaseModel
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask

OUT, IN = 128, 640
NAME = "block.attn2.to_k.weight"
TABLE = LayerTable.from_shapes({NAME: (OUT, IN), "block.attn2.to_v.weight": (OUT, IN)})
MakeMask = Callable[..., ConceptMask]


def layer(dtype: torch.dtype = torch.float32, *, bias: bool = False) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(IN, OUT, bias=bias).to(dtype).requires_grad_(False)


def graded(density: float) -> ConceptMask:
    generator = np.random.default_rng(3)
    members = np.flatnonzero(generator.random(OUT * IN) < density).astype(np.int32)
    factors = generator.random(members.size, dtype=np.float32) * 2
    return ConceptMask.from_indices(TABLE, {NAME: members}, {NAME: factors})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("density", [0.0005, 0.02, 0.3])
@pytest.mark.parametrize("kind", ["binary", "graded"])
def test_rows_are_those_of_the_masked_weight(
    random_mask: MakeMask, kind: str, density: float, known: bool, bias: bool
) -> None:
    assert OUT * IN >= SPARSE_NEURONS
    mask = graded(density) if kind == "graded" else random_mask(TABLE, density=density)
    own, inputs = layer(bias=bias), torch.randn(5, IN)
    weight = own.weight * torch.from_numpy(mask.multiplier(NAME))
    got = mask_weights(mask).project(
        NAME, own.weight, own.bias, inputs, own(inputs) if known else None
    )
    torch.testing.assert_close(got, linear(inputs, weight, own.bias), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(got, own(inputs), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_use_the_masked_weight_itself(
    random_mask: MakeMask, dtype: torch.dtype
) -> None:
    mask, own, inputs = random_mask(TABLE, density=0.01), layer(dtype), torch.randn(5, IN)
    edit = mask_weights(mask)
    expected = linear(inputs.to(dtype), edit(NAME, own.weight))
    assert torch.equal(edit.project(NAME, own.weight, own.bias, inputs.to(dtype), None), expected)


def test_torch_without_sparse_products_gives_the_same(
    random_mask: MakeMask, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, own, inputs = random_mask(TABLE, density=0.01), layer(), torch.randn(5, IN)
    edit = mask_weights(mask)
    sparse = edit.project(NAME, own.weight, own.bias, inputs, None)
    monkeypatch.setattr(weights_module, "_sparse_products", lambda: False)
    torch.testing.assert_close(edit.project(NAME, own.weight, own.bias, inputs, None), sparse)


def test_layer_without_members_is_the_plain_layer() -> None:
    own, inputs = layer(), torch.randn(5, IN)
    edit = mask_weights(ConceptMask.empty(TABLE))
    assert torch.equal(edit.project(NAME, own.weight, own.bias, inputs, None), own(inputs))


def test_threads_do_not_share_scratch_memory(random_mask: MakeMask) -> None:
    own, inputs = layer(), torch.randn(5, IN)
    edits = [mask_weights(random_mask(TABLE, seed=seed)) for seed in range(4)]
    alone = [edit.project(NAME, own.weight, own.bias, inputs, None) for edit in edits]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            if not torch.equal(
                edits[number].project(NAME, own.weight, own.bias, inputs, None), alone[number]
            ):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_of_edits_that_overlap_the_later_one_wins(
    tiny_base: BaseModel, random_mask: MakeMask
) -> None:
    table, text = tiny_base.layer_table, torch.randn(1, 6, 32)
    rows = torch.tensor([[True, True, False, False, True, False]])
    name = table.names[0]
    here_only = ConceptMask.from_indices(table, {name: np.array([1, 5, 9], np.int32)})
    first, second = RowEdit(mask_weights(random_mask(table)), rows), mask_weights(here_only)

    def keys(*edits: RowEdit) -> dict[str, Any]:
        with torch.no_grad():
            return project_text(tiny_base.denoiser, text, edits)

    both, last, plain = keys(first, RowEdit(second, rows)), keys(RowEdit(second, rows)), keys()
    everywhere = keys(first, RowEdit(second))
    for path, got in both.items():
        torch.testing.assert_close(got, last[path])
        assert torch.equal(got[~rows], plain[path][~rows])
        torch.testing.assert_close(everywhere[path][rows], got[rows])


def test_rows_made_with_and_without_gradients_agree(
    tiny_base: BaseModel, random_mask: MakeMask
) -> None:
    table, text = tiny_base.layer_table, torch.randn(2, 6, 32)
    some = torch.rand(2, 6) < 0.5
    edits = [
        RowEdit(mask_weights(random_mask(table, seed=1)), some),
        RowEdit(mask_weights(random_mask(table, seed=2)), ~some),
    ]
    learning = project_text(tiny_base.denoiser, text, edits)
    with torch.no_grad():
        drawing = project_text(tiny_base.denoiser, text, edits)
    for path, got in drawing.items():
        torch.testing.assert_close(got, learning[path])

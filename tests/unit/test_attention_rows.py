"""K/V rows: what is computed, which rows see a mask, what gets a gradient."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cones_registry.attention import (
    MaskedPart,
    RequestParts,
    RowEdit,
    edited,
    mask_weights,
    plan_rows,
    project_text,
    shut,
    text_attentions,
)
from cones_registry.attention.projecting import acting
from cones_registry.attention.rows import RowEdits
from cones_registry.base_model import BaseModel
from cones_registry.errors import BaseModelMismatchError, UsageError
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask

MakeMask = Callable[..., ConceptMask]
BATCH, ROWS, WIDTH = 3, 24, 32


@pytest.fixture
def embeddings() -> torch.Tensor:
    return torch.randn(BATCH, ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(BATCH, 4, 8, 8, generator=torch.Generator().manual_seed(2))


def test_edits_of_nothing_give_the_bits_of_the_plain_model(
    tiny_base: BaseModel, embeddings: torch.Tensor, noise: torch.Tensor
) -> None:
    unet = tiny_base.denoiser
    with torch.no_grad():
        expected = unet(noise, 500, encoder_hidden_states=embeddings).sample
        got = edited(unet)(noise, 500, encoder_hidden_states=embeddings).sample
        after = unet(noise, 500, encoder_hidden_states=embeddings).sample
    assert torch.equal(got, expected)
    assert torch.equal(after, expected)


def test_kept_rows_decide_and_the_text_given_later_does_not(
    tiny_base: BaseModel, embeddings: torch.Tensor, noise: torch.Tensor
) -> None:
    with torch.no_grad():
        predict = edited(tiny_base.denoiser, once=True)
        first = predict(noise, 500, encoder_hidden_states=embeddings).sample
        second = predict(noise, 500, encoder_hidden_states=torch.zeros_like(embeddings)).sample
    assert torch.equal(first, second)


def test_edits_act_on_the_calling_thread_alone(
    tiny_base: BaseModel, random_mask: MakeMask, embeddings: torch.Tensor
) -> None:
    plain = project_text(tiny_base.denoiser, embeddings)
    seen: list[dict[str, torch.Tensor]] = []
    layers = [pair for block in text_attentions(tiny_base.denoiser) for pair in block.projections]

    def other() -> None:
        seen.append({name: layer(embeddings) for name, layer in layers})

    with acting(RowEdits([RowEdit(mask_weights(random_mask(tiny_base.layer_table)))])):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert not torch.equal(layers[0][1](embeddings), plain[layers[0][0]])
    assert all(torch.equal(seen[0][name], rows) for name, rows in plain.items())


@pytest.mark.parametrize("slices", [None, "max"])
def test_whole_prompt_mask_agrees_with_shut(
    tiny_base: BaseModel,
    random_mask: MakeMask,
    embeddings: torch.Tensor,
    noise: torch.Tensor,
    slices: str | None,
) -> None:
    unet = tiny_base.denoiser
    mask = random_mask(tiny_base.layer_table)
    processors = dict(unet.attn_processors)
    try:
        if slices:
            unet.set_attention_slice(slices)
        with torch.no_grad():
            plain = unet(noise, 500, encoder_hidden_states=embeddings).sample
            with shut(unet, mask):
                expected = unet(noise, 500, encoder_hidden_states=embeddings).sample
            predict = edited(unet, [RowEdit(mask_weights(mask))])
            served = predict(noise, 500, encoder_hidden_states=embeddings).sample
    finally:
        unet.set_attn_processor(processors)
    assert not torch.allclose(plain, expected, atol=1e-3)
    torch.testing.assert_close(served, expected)


def test_rows_outside_an_edit_have_the_bits_of_the_plain_model(
    tiny_base: BaseModel, random_mask: MakeMask, embeddings: torch.Tensor
) -> None:
    which = torch.zeros(BATCH, ROWS, dtype=torch.bool)
    which[1, 4:6] = True
    mask = random_mask(tiny_base.layer_table)
    with torch.no_grad():
        plain = project_text(tiny_base.denoiser, embeddings)
        some = project_text(tiny_base.denoiser, embeddings, [RowEdit(mask_weights(mask), which)])
        whole = project_text(tiny_base.denoiser, embeddings, [RowEdit(mask_weights(mask))])
    for name, got in some.items():
        assert torch.equal(got[~which], plain[name][~which])
        torch.testing.assert_close(got[which], whole[name][which])
        assert not torch.equal(got[which], plain[name][which])


def test_gradient_of_a_multiplier_at_one_is_weight_times_weight_gradient(
    tiny_base: BaseModel, embeddings: torch.Tensor, noise: torch.Tensor
) -> None:
    unet, table = tiny_base.denoiser, tiny_base.layer_table
    ones = {layer.name: torch.ones(layer.rows, layer.cols, requires_grad=True) for layer in table}
    leaves = {
        layer.name: unet.get_parameter(layer.name).detach().clone().requires_grad_()
        for layer in table
    }
    for weights in (lambda name, weight: weight * ones[name], lambda name, _: leaves[name]):
        predict = edited(unet, [RowEdit(weights)])
        predict(noise, 500, encoder_hidden_states=embeddings).sample.square().sum().backward()
    for layer in table:
        leaf = leaves[layer.name]
        assert leaf.grad is not None
        assert leaf.grad.abs().max() > 0
        torch.testing.assert_close(
            ones[layer.name].grad, leaf.detach() * leaf.grad, atol=1e-4, rtol=1e-3
        )
    assert all(weight.grad is None for weight in unet.parameters())


def test_gradient_is_that_of_autograd_on_the_model_itself(
    tiny_base: BaseModel, embeddings: torch.Tensor, noise: torch.Tensor
) -> None:
    unet, name = tiny_base.denoiser, tiny_base.layer_table.names[1]
    leaf = unet.get_parameter(name).detach().clone().requires_grad_()
    predict = edited(unet, [RowEdit(lambda layer, weight: leaf if layer == name else weight)])
    predict(noise, 500, encoder_hidden_states=embeddings).sample.square().sum().backward()
    unet.get_parameter(name).requires_grad_(True)
    try:
        unet(noise, 500, encoder_hidden_states=embeddings).sample.square().sum().backward()
        torch.testing.assert_close(leaf.grad, unet.get_parameter(name).grad)
    finally:
        unet.get_parameter(name).requires_grad_(False)
        unet.get_parameter(name).grad = None


def test_gradients_reach_only_the_edited_rows(
    tiny_base: BaseModel, embeddings: torch.Tensor
) -> None:
    unet, name = tiny_base.denoiser, tiny_base.layer_table.names[0]
    which = torch.zeros(BATCH, ROWS, dtype=torch.bool)
    which[0, 3] = True
    gate = torch.ones(unet.get_parameter(name).shape, requires_grad=True)
    edit = RowEdit(lambda layer, weight: weight * gate if layer == name else weight, which)
    key = project_text(tiny_base.denoiser, embeddings, [edit])[name]
    key[~which].sum().backward(retain_graph=True)
    assert gate.grad is not None
    assert gate.grad.abs().max() == 0
    key[which].sum().backward()
    assert gate.grad.abs().max() > 0


def test_rows_of_another_shape_are_refused(tiny_base: BaseModel, embeddings: torch.Tensor) -> None:
    edit = RowEdit(lambda _, weight: weight, torch.zeros(BATCH, ROWS + 1, dtype=torch.bool))
    with pytest.raises(UsageError, match=r"expected torch\.bool \(3, 24\)"):
        project_text(tiny_base.denoiser, embeddings, [edit])


def test_plan_makes_one_edit_for_each_set_of_masks(
    tiny_base: BaseModel, random_mask: MakeMask
) -> None:
    table = tiny_base.layer_table
    first, second = random_mask(table, seed=1), random_mask(table, seed=2)
    some = torch.zeros(ROWS, dtype=torch.bool)
    some[3:5] = True
    entries = [
        RequestParts(),
        RequestParts((MaskedPart(first),)),
        RequestParts((MaskedPart(first), MaskedPart(second, some))),
        RequestParts((MaskedPart(ConceptMask.empty(table)),)),
    ]
    edits = plan_rows(entries, ROWS)
    expected_first = torch.zeros(4, ROWS, dtype=torch.bool)
    expected_first[1] = True
    expected_first[2] = ~some
    expected_both = torch.zeros(4, ROWS, dtype=torch.bool)
    expected_both[2] = some
    assert len(edits) == 2
    by_count = {int(edit.rows.sum()): edit for edit in edits}  # type: ignore[union-attr]
    assert torch.equal(by_count[2 * ROWS - 2].rows, expected_first)  # type: ignore[arg-type]
    assert torch.equal(by_count[2].rows, expected_both)  # type: ignore[arg-type]
    name = table.names[0]
    weight = tiny_base.denoiser.get_parameter(name)
    union = mask_weights(first | second)(name, weight)
    assert torch.equal(by_count[2].weights(name, weight), union)


def test_empty_masks_need_no_edit(tiny_base: BaseModel) -> None:
    entry = RequestParts((MaskedPart(ConceptMask.empty(tiny_base.layer_table)),))
    assert plan_rows([entry], ROWS) == []


def weights_of(base: BaseModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in base.denoiser.state_dict().items()}


@pytest.mark.parametrize("failing", [False, True])
def test_shut_restores_every_bit(
    tiny_base: BaseModel, random_mask: MakeMask, failing: bool
) -> None:
    before = weights_of(tiny_base)
    outer = random_mask(tiny_base.layer_table, seed=1)
    inner = random_mask(tiny_base.layer_table, seed=2)

    def draw() -> None:
        with shut(tiny_base.denoiser, outer), shut(tiny_base.denoiser, inner):
            name = tiny_base.layer_table.names[0]
            dense = torch.from_numpy((outer | inner).to_dense(name))
            weight = tiny_base.denoiser.get_parameter(name)
            assert bool((weight[dense] == 0).all())
            assert torch.equal(weight[~dense], before[name][~dense])
            if failing:
                raise RuntimeError("while drawing")

    if failing:
        with pytest.raises(RuntimeError, match="while drawing"):
            draw()
    else:
        draw()
    after = weights_of(tiny_base)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_mask_of_another_layer_table_is_refused_before_a_weight_changes(
    tiny_base: BaseModel, random_mask: MakeMask
) -> None:
    before = weights_of(tiny_base)
    other = random_mask(LayerTable.from_shapes({"x.attn2.to_k.weight": (4, 4)}))
    with pytest.raises(BaseModelMismatchError), shut(tiny_base.denoiser, other):
        pytest.fail("the block must not run")
    after = weights_of(tiny_base)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_graded_mask_multiplies_by_its_factors(tiny_base: BaseModel) -> None:
    table = tiny_base.layer_table
    name = table.names[0]
    mask = ConceptMask.from_indices(
        table,
        {name: np.array([1, 5], np.int32)},
        factors={name: np.array([0.5, 2.0], np.float32)},
    )
    weight = tiny_base.denoiser.get_parameter(name)
    expected = weight.flatten().clone()
    expected[[1, 5]] *= torch.tensor([0.5, 2.0])
    with shut(tiny_base.denoiser, mask):
        assert torch.equal(weight.flatten(), expected)
    assert torch.equal(mask_weights(mask)(name, weight).flatten(), expected)
    assert mask_weights(mask)(table.names[1], weight) is weight


@pytest.mark.parametrize("learning", [False, True])
def test_a_thousand_masks_leave_nothing_behind(tiny_base: BaseModel, learning: bool) -> None:
    table, name = tiny_base.layer_table, tiny_base.layer_table.names[0]
    text = torch.randn(1, 2, WIDTH)

    def tensor_count() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    masks: list[weakref.ref[ConceptMask]] = []
    project_text(tiny_base.denoiser, text)
    before = tensor_count()
    for number in range(1000):
        mask = ConceptMask.from_indices(table, {name: np.array([number % 500], np.int32)})
        masks.append(weakref.ref(mask))
        with torch.set_grad_enabled(learning):
            rows = project_text(tiny_base.denoiser, text, [RowEdit(mask_weights(mask))])
        assert rows
    del mask, rows
    assert tensor_count() == before
    assert not any(mask() for mask in masks)


@pytest.fixture
def own_base(tiny_pipeline_folder: Path) -> Iterator[BaseModel]:
    """A tiny base model that nobody else gets."""
    BaseModel.cache.clear()
    yield BaseModel.load(tiny_pipeline_folder, device="cpu")
    BaseModel.cache.clear()


def test_lora_layers_are_not_half_used(
    own_base: BaseModel, random_mask: MakeMask, embeddings: torch.Tensor, noise: torch.Tensor
) -> None:
    peft = pytest.importorskip("peft")
    unet, mask = own_base.denoiser, random_mask(own_base.layer_table)
    edited(unet)(noise, 500, encoder_hidden_states=embeddings)
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_k"]))
    with pytest.raises(UsageError, match="LoRA layers attached"):
        edited(unet)
    plain = unet(noise, 500, encoder_hidden_states=embeddings).sample
    with shut(unet, mask):
        assert not torch.equal(unet(noise, 500, encoder_hidden_states=embeddings).sample, plain)
    assert torch.equal(unet(noise, 500, encoder_hidden_states=embeddings).sample, plain)


def test_fused_projections_are_refused(
    own_base: BaseModel, random_mask: MakeMask, embeddings: torch.Tensor
) -> None:
    unet = own_base.denoiser
    unet.fuse_qkv_projections()
    with pytest.raises(UsageError, match="unfuse"):
        edited(unet)
    with pytest.raises(UsageError, match="unfuse"), shut(unet, random_mask(own_base.layer_table)):
        pytest.fail("the block must not run")

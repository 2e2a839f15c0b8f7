"""Layer tables of real models, their identity, and the fingerprint of a base model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel

from cones_registry.errors import CorruptDataError, NotFoundError, UsageError
from cones_registry.layers import MAX_LAYER_NEURONS, Layer, LayerTable, fingerprint

DATA = Path(__file__).parents[1] / "data"
MODELS = {
    "UNet2DConditionModel": UNet2DConditionModel,
    "PixArtTransformer2DModel": PixArtTransformer2DModel,
}
SMALL_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def meta_model(name: str) -> Any:
    config = json.loads((DATA / name).read_text())
    model_class = MODELS[config.pop("_class_name")]
    with torch.device("meta"):
        return model_class(**config)


@pytest.mark.parametrize(
    ("config", "layers", "neurons"),
    [
        ("unet-sd-1.json", 32, 19_169_280),
        ("unet-sd-2.1.json", 32, 25_559_040),
        ("unet-sdxl.json", 140, 340_787_200),
        ("transformer-pixart-alpha.json", 56, 74_317_824),
    ],
)
def test_table_of_a_real_model_has_all_its_cross_attention_and_nothing_else(
    config: str, layers: int, neurons: int
) -> None:
    table = LayerTable.from_unet(meta_model(config))

    assert (len(table.layers), table.neuron_count) == (layers, neurons)
    assert all(layer.neuron_count <= MAX_LAYER_NEURONS for layer in table.layers)
    assert [layer.kind for layer in table.layers] == ["k", "v"] * (layers // 2)


def test_layers_stand_in_state_dict_order_under_their_state_dict_names() -> None:
    model = meta_model("unet-sd-1.json")

    expected = [n for n in model.state_dict() if ".attn2.to_k." in n or ".attn2.to_v." in n]

    assert list(LayerTable.from_unet(model).names) == expected
    assert LayerTable.from_unet(model.state_dict()) == LayerTable.from_unet(model)


def test_attention_to_the_image_itself_is_left_out() -> None:
    unet = UNet2DConditionModel(**SMALL_UNET)

    names = LayerTable.from_unet(unet).names

    assert not [name for name in names if ".attn1." in name]
    assert [name for name in unet.state_dict() if ".attn1.to_k." in name]


def test_an_attn2_that_attends_to_the_image_is_left_out() -> None:
    class Attending:
        class config:
            cross_attention_dim = 12

        def named_parameters(self) -> Any:
            yield "a.attn2.to_k.weight", torch.empty(8, 12)
            yield "b.attn2.to_k.weight", torch.empty(8, 8)

    assert LayerTable.from_unet(Attending()).names == ("a.attn2.to_k.weight",)


def test_a_width_for_each_block_is_understood() -> None:
    widths = (
        SMALL_UNET
        | {"cross_attention_dim": (12, 20)}
        | {
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        }
    )

    table = LayerTable.from_unet(UNet2DConditionModel(**widths))

    assert {layer.cols for layer in table.layers} == {12, 20}


@pytest.mark.parametrize("wrong", [object(), torch.nn.Linear(2, 2), {}])
def test_what_has_no_cross_attention_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="expected"):
        LayerTable.from_unet(wrong)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_unet_has_the_table_of_the_unet_in_it() -> None:
    unet = UNet2DConditionModel(**SMALL_UNET)

    assert LayerTable.from_unet(torch.compile(unet)) == LayerTable.from_unet(unet)


def test_json_round_trip_keeps_table_and_digest() -> None:
    table = LayerTable.from_shapes({"ä": (3, 5), "b.to_v.weight": (7, 2)})

    again = LayerTable.from_json(json.loads(json.dumps(table.to_json())))

    assert again == table
    assert again.digest == table.digest
    assert again.layer("ä") == Layer("ä", 3, 5)


def test_digest_tells_order_names_and_shapes_apart() -> None:
    shapes = [
        {"a": (2, 3), "b": (4, 5)},
        {"b": (4, 5), "a": (2, 3)},
        {"a": (3, 2), "b": (4, 5)},
        {"a": (2, 3)},
    ]

    assert len({LayerTable.from_shapes(each).digest for each in shapes}) == len(shapes)


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"": (1, 1)},
        {"a" * 301: (1, 1)},
        {"a\0": (1, 1)},
        {"a": (0, 1)},
        {"a": (1, -1)},
        {"a": (1, 1, 1)},
        {"a": (2**16, 2**15)},
        {str(i): (2**15, 2**15) for i in range(3)},
        {str(i): (1, 1) for i in range(4097)},
    ],
)
def test_a_table_out_of_bounds_is_refused(shapes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        LayerTable.from_shapes(shapes)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"layers": {}},
        {"layers": []},
        {"layers": [["a", 1]]},
        {"layers": [["a", 1, 1.0]]},
        {"layers": [["a", 1, True]]},
        {"layers": [["a", 1, 1], ["a", 1, 1]]},
        {"layers": [[1, 1, 1]]},
        {"layers": [["a", 10**30, 1]]},
        {"layers": [["a", 1, 1]] * 5000},
    ],
)
def test_json_that_is_no_table_is_corrupt(value: Any) -> None:
    with pytest.raises(CorruptDataError):
        LayerTable.from_json(value)


def test_a_layer_that_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="no layer 'c'"):
        LayerTable.from_shapes({"a": (1, 1)}).layer("c")


def test_kind_is_read_off_the_name() -> None:
    assert Layer("x.attn2.to_k.weight", 1, 1).kind == "k"
    assert Layer("x.attn2.to_v.weight", 1, 1).kind == "v"
    with pytest.raises(UsageError, match="neither"):
        _ = Layer("x", 1, 1).kind


class TestFingerprint:
    table = LayerTable.from_shapes({"a": (8, 16), "b": (3, 5)})

    def weights(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        return {
            n: rng.normal(size=(self.table.layer(n).rows, self.table.layer(n).cols)).astype(
                np.float32
            )
            for n in self.table.names
        }

    def of(self, weights: dict[str, np.ndarray]) -> str:
        return fingerprint(self.table, weights.__getitem__)

    def test_is_the_same_for_float32_and_float16_of_the_same_weights(self) -> None:
        weights = self.weights()
        half = {n: torch.from_numpy(w).half().numpy() for n, w in weights.items()}

        assert self.of(weights) == self.of(half)
        assert self.of(weights).startswith("sha256:")

    def test_changes_with_one_weight(self) -> None:
        weights = self.weights()
        before = self.of(weights)
        weights["b"][2, 4] *= 1.01

        assert self.of(weights) != before

    def test_changes_with_the_layer_table(self) -> None:
        other = LayerTable.from_shapes({"a": (8, 16), "c": (3, 5)})
        weights = self.weights()

        assert fingerprint(other, (weights | {"c": weights["b"]}).__getitem__) != self.of(weights)

    def test_does_not_depend_on_memory_layout(self) -> None:
        weights = self.weights()

        assert self.of({n: np.asfortranarray(w) for n, w in weights.items()}) == self.of(weights)

    def test_takes_weights_beyond_float16(self) -> None:
        weights = self.weights()
        weights["a"][0, 0] = 1e30

        assert self.of(weights) == self.of(
            {n: torch.from_numpy(w).half().numpy() for n, w in weights.items()}
        )

    @pytest.mark.parametrize(
        "wrong",
        [np.zeros((16, 8), np.float32), np.zeros((8, 16), np.int32), np.full((8, 16), np.nan)],
    )
    def test_refuses_what_is_not_the_layers_weight(self, wrong: np.ndarray) -> None:
        with pytest.raises(UsageError, match="layer 'a'"):
            self.of(self.weights() | {"a": wrong})

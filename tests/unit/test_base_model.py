"""Loading base models: what is accepted, what is refused and why, and what is shared."""

import gc
import json
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cones_registry.base_model import BaseModel
from cones_registry.base_model.cache import ModelCache
from cones_registry.errors import CorruptDataError, NotFoundError, UsageError


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    BaseModel.cache.clear()


@pytest.fixture
def copy(tiny_pipeline_folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    shutil.copytree(tiny_pipeline_folder, target)
    return target


def unet_file(folder: Path) -> Path:
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def test_loads_a_folder_with_its_layer_table(tiny_pipeline_folder: Path) -> None:
    base = BaseModel.load(tiny_pipeline_folder, device="cpu")
    assert base.layer_table.names[0].endswith("attn2.to_k.weight")
    assert base.layer_table.layers[0].cols == 32
    assert base.dtype == torch.float32
    assert base.fingerprint.startswith("sha256:")
    assert len(base.tokenizers) == 1
    assert not any(weight.requires_grad for weight in base.denoiser.parameters())


def test_same_source_device_and_dtype_is_the_same_object(tiny_pipeline_folder: Path) -> None:
    base = BaseModel.load(tiny_pipeline_folder, device="cpu")
    assert BaseModel.load(str(tiny_pipeline_folder), device="cpu", dtype="float32") is base
    assert BaseModel.load(tiny_pipeline_folder, device="cpu", dtype="float16") is not base


def test_changed_folder_is_loaded_again(copy: Path) -> None:
    base = BaseModel.load(copy, device="cpu")
    weights = load_file(unet_file(copy))
    weights[base.layer_table.names[0]][0, 0] += 1
    save_file(weights, unet_file(copy), metadata={"format": "pt"})
    assert BaseModel.load(copy, device="cpu").fingerprint != base.fingerprint


@pytest.mark.parametrize("file", ["scheduler/scheduler_config.json", "tokenizer/tokenizer.json"])
def test_changed_settings_are_loaded_again(copy: Path, file: str) -> None:
    base = BaseModel.load(copy, device="cpu")
    content = (copy / file).read_text()
    (copy / file).write_text(content.replace("scaled_linear", "linear") + " ")
    changed = BaseModel.load(copy, device="cpu")
    assert changed is not base
    if file.startswith("scheduler"):
        assert changed.pipeline.scheduler.config.beta_schedule == "linear"


def test_a_folder_has_no_published_source(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert BaseModel.load("demo", device="cpu").published_source == "demo"
    # Relative paths that look like a hub id, or like nothing at all, are paths.
    monkeypatch.chdir(copy.parent.parent)
    relative = f"{copy.parent.name}/{copy.name}"
    assert BaseModel.load(relative, device="cpu").published_source is None
    monkeypatch.chdir(copy.parent)
    assert BaseModel.load(copy.name, device="cpu").published_source is None


def test_threads_that_ask_at_once_share_one_load(
    tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[int] = []
    real = BaseModel._load.__func__  # type: ignore[attr-defined]

    def counted(cls: type[BaseModel], *arguments: Any) -> BaseModel:
        loads.append(1)
        return real(cls, *arguments)  # type: ignore[no-any-return]

    monkeypatch.setattr(BaseModel, "_load", classmethod(counted))
    start, found = threading.Barrier(6), []

    def ask() -> None:
        start.wait()
        found.append(BaseModel.load(tiny_pipeline_folder, device="cpu"))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len(found) == 6
    assert len({id(base) for base in found}) == 1


def test_fingerprint_is_the_same_in_every_dtype_and_release(copy: Path, tmp_path: Path) -> None:
    base = BaseModel.load(copy, device="cpu")
    for dtype in ("float16", "bfloat16"):
        assert BaseModel.load(copy, device="cpu", dtype=dtype).fingerprint == base.fingerprint
    release = tmp_path / "release"
    BaseModel.load(copy, device="cpu", dtype="float16").pipeline.save_pretrained(release)
    assert BaseModel.load(release, device="cpu").fingerprint == base.fingerprint


def test_variant_release_is_found_without_being_named(copy: Path, tmp_path: Path) -> None:
    base = BaseModel.load(copy, device="cpu")
    release = tmp_path / "release"
    BaseModel.load(copy, device="cpu", dtype="float16").pipeline.save_pretrained(
        release, variant="fp16"
    )
    loaded = BaseModel.load(release, device="cpu")
    assert loaded.fingerprint == base.fingerprint
    assert loaded.dtype == torch.float32


def test_missing_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        BaseModel.load(tmp_path / "absent")


def test_folder_without_model_index_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no model_index\.json"):
        BaseModel.load(tmp_path)


def test_single_checkpoint_file_says_how_to_convert(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(UsageError, match="from_single_file"):
        BaseModel.load(file)


def test_pickled_weights_are_refused_with_a_way_out(copy: Path) -> None:
    unet_file(copy).rename(copy / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(CorruptDataError, match="use_safetensors=False"):
        BaseModel.load(copy)


def test_truncated_weights_are_corrupt(copy: Path) -> None:
    data = unet_file(copy).read_bytes()
    unet_file(copy).write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptDataError, match="Copy the folder again"):
        BaseModel.load(copy, device="cpu")


def test_pipeline_without_denoiser_is_refused(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    del index["unet"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="neither a unet nor a transformer"):
        BaseModel.load(copy)


def edited(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "shape": lambda at: edited(at / "unet/config.json", block_out_channels=[16, 64]),
    "block": lambda at: edited(at / "unet/config.json", down_block_types=["None", "None"]),
    "text": lambda at: edited(at / "text_encoder/config.json", hidden_size=64),
    "schedule": lambda at: edited(at / "scheduler/scheduler_config.json", beta_schedule="x"),
    "class": lambda at: edited(at / "model_index.json", unet=["diffusers", "NoModel"]),
    "pipeline": lambda at: edited(at / "model_index.json", _class_name="NoPipeline"),
    "index": lambda at: edited(at / "model_index.json", unet=[3, 4]),
    "vocabulary": lambda at: (at / "tokenizer/tokenizer.json").unlink(),
    "length": lambda at: (at / "tokenizer/tokenizer_config.json").unlink(),
}


@pytest.mark.filterwarnings("ignore")  # what the libraries say of a damaged folder on the way
@pytest.mark.parametrize("damage", DAMAGES)
def test_parts_that_do_not_fit_are_corrupt_data(copy: Path, damage: str) -> None:
    DAMAGES[damage](copy)
    with pytest.raises(CorruptDataError, match="Copy the folder again"):
        BaseModel.load(copy, device="cpu")


def test_a_part_that_is_named_but_missing_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(NotFoundError, match=r"tokenizer does not exist.*Copy the folder again"):
        BaseModel.load(copy, device="cpu")


def test_a_name_the_hub_does_not_allow_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="nor a name the hub allows"):
        BaseModel.load("no/such--model")


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "hpu", torch.device("mps")])
def test_a_device_that_is_not_here_is_a_usage_error(
    tiny_pipeline_folder: Path, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (torch.cuda, torch.xpu, torch.backends.mps):
        monkeypatch.setattr(kind, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"torch sees none of that kind here.*auto, cpu"):
        BaseModel.load(tiny_pipeline_folder, device=device)


@pytest.mark.parametrize(
    "arguments", [{"device": "abacus"}, {"dtype": "int8"}, {"dtype": torch.int8}]
)
def test_unknown_device_or_dtype_is_a_usage_error(
    tiny_pipeline_folder: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        BaseModel.load(tiny_pipeline_folder, **arguments)


def test_unloaded_model_says_to_load_again(copy: Path) -> None:
    base = BaseModel.load(copy, device="cpu")
    base.unload()
    with pytest.raises(UsageError, match="Load it again"):
        _ = base.pipeline
    assert BaseModel.load(copy, device="cpu") is not base


def test_unloaded_model_leaves_no_weights_behind(copy: Path) -> None:
    from cones_registry.generation import Generator, Request

    base = BaseModel.load(copy, device="cpu")
    Generator(base).generate([Request("a dog")], steps=1)
    weights = weakref.ref(base.denoiser)
    base.unload()
    gc.collect()
    assert weights() is None


class _Sized:
    def __init__(self, size: int) -> None:
        self.byte_count = size


def test_cache_forgets_the_least_recently_used_of_one_device() -> None:
    cache: ModelCache[_Sized] = ModelCache(limit=10)
    first = cache.get("first", "cpu", lambda: _Sized(4))
    other = cache.get("other", "cuda:0", lambda: _Sized(10))
    cache.get("second", "cpu", lambda: _Sized(4))
    assert cache.get("first", "cpu", lambda: _Sized(4)) is first
    cache.get("third", "cpu", lambda: _Sized(4))
    assert cache.get("first", "cpu", lambda: _Sized(4)) is first
    assert cache.get("other", "cuda:0", lambda: _Sized(10)) is other
    assert len(cache) == 3


def test_cache_is_bounded_by_the_device_unless_told_otherwise() -> None:
    cache: ModelCache[_Sized] = ModelCache(own_limit={"cpu": 10, "cuda:0": None}.get)
    for number in range(4):
        cache.get(("cpu", number), "cpu", lambda: _Sized(4))
        cache.get(("cuda", number), "cuda:0", lambda: _Sized(4))
    assert len(cache) == 2 + 4
    cache.limit = 4
    assert len(cache) == 1 + 1


def test_base_models_take_at_most_half_of_a_device(tiny_pipeline_folder: Path) -> None:
    from cones_registry.base_model.model import _share_of

    share = _share_of("cpu")
    assert share is not None
    assert BaseModel.load(tiny_pipeline_folder, device="cpu").byte_count < share < 2**60


def test_failed_load_is_forgotten_and_tried_again() -> None:
    cache: ModelCache[_Sized] = ModelCache()

    def fail() -> _Sized:
        raise NotFoundError("gone")

    with pytest.raises(NotFoundError):
        cache.get("key", "cpu", fail)
    assert cache.get("key", "cpu", lambda: _Sized(1)).byte_count == 1


def test_folder_may_say_how_it_is_best_drawn_with(copy: Path) -> None:
    usual = BaseModel.load(copy, device="cpu")
    assert (usual.defaults.steps, usual.defaults.guidance_scale) == (50, 7.5)
    (copy / "generation_defaults.json").write_text('{"steps": 3, "guidance_scale": 1.5}')
    base = BaseModel.load(copy, device="cpu")
    assert (base.defaults.steps, base.defaults.guidance_scale) == (3, 1.5)
    assert base.fingerprint == usual.fingerprint


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"steps": 0}', '{"steps": Infinity}', '{"guidance_scale": "high"}']
)
def test_damaged_defaults_are_corrupt_data(copy: Path, content: str) -> None:
    (copy / "generation_defaults.json").write_text(content)
    with pytest.raises(CorruptDataError, match="generation_defaults"):
        BaseModel.load(copy, device="cpu")

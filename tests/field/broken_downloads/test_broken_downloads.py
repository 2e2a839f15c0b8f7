"""A file that is there by name alone is named, with what to do."""

from pathlib import Path

import pytest

from cones_registry.base_model import BaseModel
from cones_registry.errors import CorruptDataError, NotFoundError, UsageError

FILES = [
    "unet/diffusion_pytorch_model.safetensors",
    "unet/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "scheduler/scheduler_config.json",
    "model_index.json",
]
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.mark.parametrize("file", FILES)
def test_a_link_whose_target_is_gone_says_download_again(folder: Path, file: str) -> None:
    (folder / file).unlink()
    (folder / file).symlink_to("../../../blobs/gone")
    with pytest.raises(NotFoundError, match=r"link to .*blobs/gone.*Download .* again"):
        BaseModel.load(folder, device="cpu")


def test_a_link_to_itself_says_download_again(folder: Path) -> None:
    file = folder / FILES[0]
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(NotFoundError, match=r"is a link to"):
        BaseModel.load(folder, device="cpu")


def test_links_that_hold_are_followed(folder: Path) -> None:
    file = folder / FILES[0]
    blob = folder.parent / "blob"
    file.rename(blob)
    file.symlink_to(blob)
    BaseModel.load(folder, device="cpu")


@pytest.mark.parametrize("file", FILES)
def test_a_pointer_of_git_lfs_is_no_file(folder: Path, file: str) -> None:
    (folder / file).write_text(POINTER)
    with pytest.raises(NotFoundError, match=r"pointer of git-lfs.*git lfs pull"):
        BaseModel.load(folder, device="cpu")


@pytest.mark.parametrize("file", FILES)
def test_an_empty_file_is_named(folder: Path, file: str) -> None:
    (folder / file).write_bytes(b"")
    with pytest.raises(CorruptDataError, match=r"is empty\. Copy the folder again"):
        BaseModel.load(folder, device="cpu")


def test_a_part_that_was_never_downloaded_is_named(folder: Path) -> None:
    (folder / FILES[0]).unlink()
    with pytest.raises(NotFoundError, match="unet has no safetensors weights"):
        BaseModel.load(folder, device="cpu")


@pytest.mark.parametrize("within", ["", "snapshots"])
def test_a_folder_of_the_hubs_cache_says_which_folder_is_meant(
    folder: Path, tmp_path: Path, within: str
) -> None:
    cache = tmp_path / "models--someone--base"
    (cache / "refs").mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "snapshots").mkdir()
    folder.rename(cache / "snapshots/0a1b2c")
    with pytest.raises(UsageError, match=r"snapshots/0a1b2c"):
        BaseModel.load(cache / within, device="cpu")


@pytest.mark.parametrize("place", ["unet", ".cache/huggingface/download/unet"])
def test_what_is_left_of_an_interrupted_download_is_told(folder: Path, place: str) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / place / "diffusion_pytorch_model.safetensors.incomplete").write_bytes(b"x")
    with pytest.raises(NotFoundError, match="the download was interrupted"):
        BaseModel.load(folder, device="cpu")

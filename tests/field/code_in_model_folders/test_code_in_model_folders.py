"""No line of a model folder's own code runs, whichever diffusers is installed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cones_registry.base_model import BaseModel
from cones_registry.errors import UsageError


@pytest.fixture
def harm(tmp_path: Path) -> tuple[str, Path]:
    """Source that leaves a file behind when it runs, and where."""
    mark = tmp_path / "the code ran"
    return f"open({str(mark)!r}, 'w')\nclass Own: pass\n", mark


def refused(folder: Path, mark: Path) -> None:
    with pytest.raises(UsageError, match="Code that comes with a model is never run"):
        BaseModel.load(folder, device="cpu")
    assert not mark.exists()


def test_a_pipeline_of_the_folders_own_is_refused(
    folder: Path, edit: Callable[..., None], harm: tuple[str, Path]
) -> None:
    (folder / "pipeline.py").write_text(harm[0])
    edit(folder / "model_index.json", _class_name=["pipeline", "Own"])
    refused(folder, harm[1])


@pytest.mark.parametrize("part", ["scheduler", "unet", "text_encoder", "safety_checker"])
def test_a_part_of_the_folders_own_is_refused(
    folder: Path, edit: Callable[..., None], harm: tuple[str, Path], part: str
) -> None:
    (folder / part).mkdir(exist_ok=True)
    (folder / part / "own.py").write_text(harm[0])
    edit(folder / "model_index.json", **{part: ["own", "Own"]})
    refused(folder, harm[1])


@pytest.mark.parametrize("library", ["os", "subprocess", "own", "diffusers.utils", "..own", "a b"])
def test_a_part_comes_from_diffusers_or_transformers_alone(
    folder: Path,
    edit: Callable[..., None],
    harm: tuple[str, Path],
    library: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "own.py").write_text(harm[0])
    monkeypatch.syspath_prepend(str(folder))
    edit(folder / "model_index.json", scheduler=[library, "Own"])
    refused(folder, harm[1])


def test_code_that_nothing_names_is_passed_over(folder: Path, harm: tuple[str, Path]) -> None:
    (folder / "pipeline.py").write_text(harm[0])
    (folder / "unet/unet.py").write_text(harm[0])
    BaseModel.load(folder, device="cpu")
    assert not harm[1].exists()


def test_the_text_encoders_own_code_is_not_run(
    folder: Path, edit: Callable[..., None], harm: tuple[str, Path]
) -> None:
    (folder / "text_encoder/own.py").write_text(harm[0])
    edit(folder / "text_encoder/config.json", auto_map={"AutoModel": "own.Own"})
    edit(folder / "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})
    (folder / "tokenizer/own.py").write_text(harm[0])
    BaseModel.load(folder, device="cpu")
    assert not harm[1].exists()

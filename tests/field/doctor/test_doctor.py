"""`cones doctor --base` looks a base model over before anything is drawn with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cones_registry.cli import base_report, run


def test_a_sound_base_is_described(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--json", "doctor", "--base", str(folder)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pipeline"] == "StableDiffusionPipeline"
    assert found["stored_dtype"] == "float32"
    assert found["served"] is True and found["learnt"] is True
    assert found["family"] == "Stable Diffusion 1 and 2"
    assert found["safety_checker"] is False
    assert found["layers"] == 14
    assert found["weight_bytes"].keys() == {"text_encoder", "unet", "vae"}
    assert run(["doctor", "--base", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "there, and a finite number" in text
    assert "any mix of concepts in one batch" in text


def test_a_damaged_base_ends_with_its_own_exit_code(
    folder: Path,
    reweigh: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def damage(weights: dict[str, Any]) -> None:
        weights["conv_in.bias"][0] = float("nan")

    reweigh(folder / "unet/diffusion_pytorch_model.safetensors", damage)
    assert run(["doctor", "--base", str(folder)]) == 13
    assert "conv_in.bias" in capsys.readouterr().err
    assert run(["doctor", "--base", str(folder / "unet")]) == 2
    assert run(["doctor", "--base", str(folder / "absent")]) == 10


def test_a_base_that_is_too_large_is_told_before_it_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(base_report, "_memory", lambda: 1000)
    assert run(["doctor", "--base", str(folder)]) == 1
    assert "it does not fit" in capsys.readouterr().out

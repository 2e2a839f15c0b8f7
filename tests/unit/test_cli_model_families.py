"""From pictures to a picture on models that are transformers, by the command line alone."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cones_registry import cli


@pytest.mark.parametrize("family", ["sana", "stable-diffusion-3"])
def test_a_concept_is_learnt_pushed_resolved_pulled_and_drawn(
    family: str,
    family_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CONES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONES_REGISTRY", str(tmp_path / "concepts"))
    Image.new("RGB", (32, 32), "red").save(tmp_path / "dog.png")
    base = ["--base", str(family_folder(family))]
    learn = ["extract", str(tmp_path / "dog.png"), "--token", "sks", "--class-noun", "dog", *base]
    assert cli.run(["init"]) == 0
    capsys.readouterr()
    assert cli.run([*learn, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"learning takes base model .*, neurons .*, a batch .*; .* are free", said)
    quick = ["--method", "first-order", "--steps", "2", "--density", "0.3"]
    assert cli.run([*learn, *quick, "--push", "alice/dog"]) == 0
    assert capsys.readouterr().out == "alice/dog:1\n"
    assert cli.run(["resolve", "alice/dog", "--json"]) == 0
    assert "alice/dog:1" in capsys.readouterr().out
    assert cli.run(["pull", "alice/dog", "--out", str(tmp_path / "dog.parquet")]) == 0
    pictures = []
    for name, concept in (("with", ["-c", "alice/dog"]), ("without", [])):
        out = tmp_path / f"{name}.png"
        draw = ["generate", "a photo of sks dog", *base, "--steps", "2", "--seed", "1"]
        assert cli.run([*draw, *concept, "-o", str(out)]) == 0
        pictures.append(np.asarray(Image.open(out)))
    assert not np.array_equal(*pictures)

"""extract and generate, end to end on a tiny pipeline with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cones_registry import cli
from cones_registry.codec import load_file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, colour in enumerate(("red", "orange", "brown")):
        Image.new("RGB", (20, 20), colour).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONES_REGISTRY", str(tmp_path / "concepts"))
    assert cli.run(["init"]) == 0
    return tmp_path / "concepts"


def test_photos_become_a_concept_and_the_concept_a_picture(
    registry: Path,
    photos: Path,
    tmp_path: Path,
    tiny_pipeline_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = ["--base", str(tiny_pipeline_folder)]
    words = ["--token", "sks", "--class-noun", "dog"]
    file = tmp_path / "dog.parquet"
    capsys.readouterr()
    how = ["--method", "first-order", "--steps", "2", "--density", "0.1"]
    learnt = ["extract", str(photos), *words, *base, *how]
    assert cli.run([*learnt, "--push", "alice/dog", "--out", str(file)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"alice/dog:1\n{file}\n"
    assert len(load_file(file)) > 0

    picture = tmp_path / "pictures" / "dog.png"
    drawn = ["generate", "a photo of sks dog", "-c", "alice/dog", *base, "--steps", "2"]
    assert cli.run([*drawn, "--out", str(picture), "--count", "2", "--seed", "4"]) == 0
    first, second = capsys.readouterr().out.split()
    assert (first, second) == (str(picture.with_stem("dog-1")), str(picture.with_stem("dog-2")))
    assert Path(first).read_bytes() != Path(second).read_bytes()

    # A picture says how it was made, to whoever has only the picture.
    assert cli.run(["show", second]) == 0
    said = capsys.readouterr().out
    assert "alice/dog:1 at 'sks dog'" in said
    again = "cones generate 'a photo of sks dog' -c alice/dog:1 --seed 5 --steps 2 --guidance 7.5"
    assert said.rstrip().endswith(f"{again} --base MODEL")  # no registry knows a folder here
    assert cli.run(["show", f"file://{second}", "--json"]) == 0
    recipe = json.loads(capsys.readouterr().out)
    assert (recipe["prompt"], recipe["seed"], recipe["steps"]) == ("a photo of sks dog", 5, 2)
    assert recipe["concepts"][0]["ref"] == "alice/dog:1"
    assert recipe["concepts"][0]["mask_digest"] == load_file(file).digest

    # A picture of a batch says the same of the same prompt, and is the same picture.
    jobs, run = tmp_path / "jobs.jsonl", tmp_path / "run"
    job = {"prompt": "a photo of sks dog", "concepts": ["alice/dog"], "seed": 5, "steps": 2}
    jobs.write_text(json.dumps(job))
    assert cli.run(["batch", str(jobs), "--out", str(run), *base]) == 0
    capsys.readouterr()
    assert cli.run(["show", str(run / "pictures" / "000001-001.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == recipe

    # The concept's name in the prompt is its words and its rows.
    named = tmp_path / "named.png"
    drawn = ["generate", "a photo of <alice/dog>", *base, "--steps", "2", "--seed", "5"]
    assert cli.run([*drawn, "--out", str(named)]) == 0
    capsys.readouterr()
    assert Image.open(named).tobytes() == Image.open(second).tobytes()
    assert cli.run(["show", str(named)]) == 0
    said = capsys.readouterr().out
    assert "a photo of <alice/dog>" in said
    assert "cones generate 'a photo of <alice/dog:1>' --seed 5" in said
    assert cli.run(["generate", "a <alice/cat>", *base]) == 10
    assert "<alice/cat> at column 3 of the prompt" in capsys.readouterr().err

    # No token has to be thought of, and two concepts may have the same.
    pushed = ["--push", "bob/cat"]
    assert cli.run(["extract", str(photos), "--class-noun", "dog", *base, *how, *pushed]) == 0
    both = ["generate", "a <alice/dog> and <bob/cat>", *base, "--steps", "2"]
    assert cli.run([*both, "--out", str(tmp_path / "both.png")]) == 0

    # The file alone, pushed by hand, is the same concept.
    assert cli.run(["push", "alice/again", str(file)]) == 0
    capsys.readouterr()
    assert cli.run(["diff", "alice/dog", "alice/again", "--json"]) == 0
    assert '"equal": true' in capsys.readouterr().out


def test_many_subjects_are_learnt_and_pushed_from_one_file(
    registry: Path,
    photos: Path,
    tmp_path: Path,
    tiny_pipeline_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    how = {"method": "first-order", "steps": 1, "density": 0.1, "class_noun": "dog"}
    lines = tmp_path / "subjects.jsonl"
    with lines.open("w") as file:
        for name, token in (("alice/dog", "sks"), ("alice/bear", "v")):
            file.write(json.dumps({"name": name, "images": str(photos), "token": token, **how}))
            file.write("\n")
    run = ["extract", "--batch", str(lines), "--base", str(tiny_pipeline_folder)]
    assert cli.run(run) == 2
    capsys.readouterr()
    assert cli.run([*run, "--out", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made"] == 2
    assert cli.run(["list", "-q"]) == 0
    assert set(capsys.readouterr().out.split()) == {"alice/dog:1", "alice/bear:1"}


def test_a_size_no_pipeline_draws_is_refused_before_anything_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = ["-r", str(tmp_path / "none"), "generate", "a dog", "-c", "no/one", "--base", "none"]
    assert cli.run([*drawn, "--size", "512", "500"]) == 2
    assert "height is 500 pixels; expected a multiple of 8" in capsys.readouterr().err
    assert cli.run([*drawn, "--out", "dog.gif"]) == 2
    assert "dog.gif: expected a name that ends in .png or .webp" in capsys.readouterr().err


def test_a_model_whose_pipeline_tells_no_steps_is_drawn_with(
    tmp_path: Path, family_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(tmp_path / "dog.png")
    drawn = ["generate", "a dog", "--base", str(family_folder("pixart")), "--steps", "1"]
    assert cli.run([*drawn, "--out", picture]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (["--steps", "5000"], "at most 1000"),
        (["--scheduler", "euler-ancestral"], "Schedulers that can: ddim"),
        (["--scheduler", "pndm"], "Schedulers that can: ddim"),
        (["--device", "meta"], "torch sees none of that kind"),
    ],
)
def test_what_the_demo_base_cannot_do_is_a_usage_error(
    options: list[str], fact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(tmp_path / "circle.png")
    assert cli.run(["generate", "a circle", "--base", "demo", "--out", picture, *options]) == 2
    assert fact in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_no_bug(
    tmp_path: Path, tiny_pipeline_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = ["generate", "a dog", "--base", str(tiny_pipeline_folder), "--steps", "1"]
    (tmp_path / "dog-1.png").mkdir()
    assert cli.run([*drawn, "--count", "2", "--out", str(tmp_path / "dog.png")]) == 14
    assert "cannot write" in capsys.readouterr().err


def test_a_relative_folder_is_no_source_to_anybody_else(
    registry: Path,
    tmp_path: Path,
    tiny_pipeline_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cones_registry import BaseModel, ConceptMask, Registry

    home = tiny_pipeline_folder.parent.parent
    monkeypatch.chdir(home)
    # As somebody else's copy of the model: that of the other tests is cached with its whole path.
    BaseModel.cache.clear()
    base = BaseModel.load(str(tiny_pipeline_folder.relative_to(home)), device="cpu")
    Registry.open(registry).push(
        "a/one", ConceptMask.empty(base.layer_table), base=base, scope="prompt"
    )
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert cli.run(["generate", "a dog", "-c", "a/one"]) == 2
    assert "which base model?" in capsys.readouterr().err


def test_the_plain_unconditional_branch_is_a_choice_that_the_picture_tells(
    tmp_path: Path, tiny_pipeline_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(tmp_path / "dog.png")
    drawn = ["generate", "a dog", "--base", str(tiny_pipeline_folder), "--steps", "1"]
    assert cli.run([*drawn, "--out", picture, "--plain-unconditional"]) == 0
    assert cli.run(["show", picture]) == 0
    assert "--plain-unconditional" in capsys.readouterr().out


def test_extract_refuses_before_it_learns(
    registry: Path, photos: Path, tiny_pipeline_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--base", str(tiny_pipeline_folder)]
    words = ["--token", "sks", "--class-noun", "dog"]
    assert cli.run(["extract", str(photos), *words, *base]) == 2
    assert "--push REF" in capsys.readouterr().err
    assert cli.run(["extract", "no-photos", *words, *base, "--push", "alice/dog"]) == 10
    assert "no-photos" in capsys.readouterr().err
    assert cli.run(["extract", "no-photos", *words, *base, "--push", "alice/dog:3"]) == 2
    assert "cannot push to 'alice/dog:3'" in capsys.readouterr().err


def test_generate_says_which_base_model_it_needs_when_it_cannot_know(
    registry: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["generate", "a photo of a dog"]) == 2
    assert "--base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (["--workers", "2"], "--engine ray"),
        (["--engine", "ray", "--device", "cpu", "--device", "cuda:0"], "--workers"),
    ],
)
def test_options_of_another_engine_are_refused(
    options: list[str], fact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('{"prompt": "a dog"}')
    out = ["--out", str(tmp_path / "run"), "--base", "demo"]
    assert cli.run(["batch", str(jobs), *out, *options]) == 2
    assert fact in capsys.readouterr().err
    jobs.write_bytes(b'{"prompt": "\xff"}')
    assert cli.run(["batch", str(jobs), *out]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_a_batch_draws_what_is_missing_and_its_exit_code_says_whether_all_is_there(
    registry: Path,
    tmp_path: Path,
    tiny_pipeline_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs, out = tmp_path / "jobs.jsonl", tmp_path / "run"
    line = {"prompt": "a photo of a dog", "steps": 1, "count": 2}
    jobs.write_text(json.dumps(line) + "\n")
    run = ["batch", str(jobs), "--out", str(out), "--base", str(tiny_pipeline_folder), "--json"]
    capsys.readouterr()
    assert cli.run(run) == 0
    assert json.loads(capsys.readouterr().out)["made"] == 2
    assert cli.run(run) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 2

    jobs.write_text(json.dumps(line) + "\n" + json.dumps({**line, "concepts": ["no/one"]}) + "\n")
    elsewhere = [*run, "--out", str(tmp_path / "other")]
    assert cli.run(elsewhere) == 2
    assert "line 2" in capsys.readouterr().err
    assert cli.run([*elsewhere, "--keep-going"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["made"] == 2
    assert "line 2" in captured.err
    assert "2 of 2 pictures made, 1 line skipped in" in captured.err

"""`cones evaluate`, all four verbs, on a Stable-Diffusion-shaped pipeline with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from cones_registry import cli
from cones_registry.generation import read_recipe

SCHEMA = Path(__file__).parents[2] / "schema"


def keeps_to(name: str, file: Path) -> Any:
    content = json.loads(file.read_text("utf-8"))
    schema = json.loads((SCHEMA / f"evaluation-{name}.schema.json").read_text("utf-8"))
    jsonschema.validate(content, schema)
    return content


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_pipeline_folder: Path) -> Path:
    """Two subjects learnt in two steps, and a plan of one prompt with each and both."""
    monkeypatch.setenv("CONES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONES_REGISTRY", str(tmp_path / "concepts"))
    assert cli.run(["init"]) == 0
    base = ["--base", str(tiny_pipeline_folder)]
    for number, (noun, token) in enumerate((("dog", "sks"), ("bear", "v"))):
        folder = tmp_path / "photos" / noun
        folder.mkdir(parents=True)
        for at in range(2):
            pixels = np.random.default_rng([number, at]).integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{at}.png")
        learnt = ["extract", str(folder), "--token", token, "--class-noun", noun, *base]
        how = ["--method", "first-order", "--steps", "2", "--density", "0.1"]
        assert cli.run([*learnt, *how, "--push", f"me/{noun}"]) == 0
    file = tmp_path / "plan.json"
    content = {
        "format": "cones evaluation 1",
        "subjects": {
            "dog": {"token": "sks", "noun": "dog", "images": "photos/dog"},
            "bear": {"token": "v", "noun": "bear", "images": "photos/bear"},
        },
        "groups": [["dog"], ["dog", "bear"]],
        "prompts": ["a photo of {1} on the wall", "a photo of {1} and {2}"],
        "seeds": 2,
        "steps": 2,
        "guidance": 3,
        "rows": [
            {"name": "base", "words": "noun"},
            {"name": "cones/subject", "concepts": {"dog": "me/dog", "bear": "me/bear:1"}},
            {
                "name": "custom-diffusion",
                "baseline": "custom-diffusion",
                "steps": 1,
                "sets": [["dog", "bear"]],
            },
            {"name": "real", "pictures": "references"},
        ],
    }
    file.write_text(json.dumps(content))
    keeps_to("plan", file)
    return file


def test_a_plan_becomes_pictures_scores_and_a_table(
    plan: Path,
    tmp_path: Path,
    tiny_pipeline_folder: Path,
    clip_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    generate = ["evaluate", "generate", str(plan), "--base", str(tiny_pipeline_folder)]
    generate += ["--out", str(run), "--batch-size", "4"]
    capsys.readouterr()
    assert cli.run(generate) == 0
    folders = capsys.readouterr().out.split()
    names = ["base", "cones-subject", "custom-diffusion", "real"]
    trained = json.loads((run / "custom-diffusion" / "training.json").read_text())
    assert trained["dog+bear"]["parameters"]["steps"] == 2  # the plan's one, for each of the two
    assert folders == [str(run / name) for name in names]
    ours = keeps_to("gallery", run / "cones-subject" / "gallery.json")
    assert [each["text"] for each in ours["pictures"]] == ["a photo of dog on the wall"] * 2 + [
        "a photo of dog and bear"
    ] * 2
    recipe = read_recipe(run / "cones-subject" / ours["pictures"][2]["file"])
    assert recipe["prompt"] == "a photo of sks dog and v bear"
    assert [each["ref"] for each in recipe["concepts"]] == ["me/dog:1", "me/bear:1"]
    assert ours["bytes_per_concept"] > 0
    # A rival's picture says all that ours does, and that no `generate` draws it again.
    theirs = read_recipe(run / "custom-diffusion" / "pictures" / "000002-001.png")
    assert set(theirs) == set(recipe) | {"baseline"}
    assert theirs["baseline"] == "custom-diffusion" and theirs["base"] != recipe["base"]
    same = ("prompt", "negative_prompt", "seed", "steps", "guidance", "size", "scheduler", "dtype")
    assert {key: theirs[key] for key in same} == {key: recipe[key] for key in same}
    assert cli.run(["show", str(run / "custom-diffusion" / "pictures" / "000002-001.png")]) == 0
    assert "cones generate" not in capsys.readouterr().out
    rival = keeps_to("gallery", run / "custom-diffusion" / "gallery.json")
    table_bytes = rival["base_neurons"] * 4
    assert rival["bytes_per_concept"] > table_bytes / 2  # one set of K and V for both subjects

    # Started again, nothing is drawn anew but the picture that is missing.
    lost = run / "custom-diffusion" / rival["pictures"][0]["file"]
    kept = run / "custom-diffusion" / rival["pictures"][1]["file"]
    before, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    ours_stamp = (run / "cones-subject" / ours["pictures"][0]["file"]).stat().st_mtime_ns
    lost.unlink()
    assert cli.run([*generate, "--row", "custom-diffusion", "--row", "cones/subject"]) == 0
    assert lost.read_bytes() == before
    assert (run / "cones-subject" / ours["pictures"][0]["file"]).stat().st_mtime_ns == ours_stamp
    assert keeps_to("gallery", run / "custom-diffusion" / "gallery.json") == rival
    # A folder never mixes pictures of two trainings, or of two lists of prompts.
    content = json.loads(plan.read_text())
    content["rows"][2]["learning_rate"] = 0.01
    content["prompts"][1] = "a picture of {1} and {2}"
    other = plan.with_name("other.json")
    other.write_text(json.dumps(content))
    changed = [str(other) if each == str(plan) else each for each in generate]
    capsys.readouterr()
    assert cli.run([*changed, "--row", "custom-diffusion"]) == 11
    said = capsys.readouterr().err
    assert "learning_rate None and now 0.01" in said and "prompts " in said
    assert stamp  # the first prompt's pictures were drawn together again, with the same result

    score = ["evaluate", "score", *folders, "--clip", str(clip_folder)]
    assert cli.run([*score, "--preset", "paper"]) == 2
    assert cli.run(score) == 0
    for folder in folders:
        keeps_to("scores", Path(folder) / "scores.json")
    capsys.readouterr()
    table = ["evaluate", "table", *folders]
    assert cli.run(table) == 0
    text = capsys.readouterr().out
    assert "| cones/subject |" in text and "Not comparable" in text and "n=2" in text
    assert cli.run([*table, "--title", "The paper's table"]) == 2
    assert "would claim" in capsys.readouterr().err
    assert cli.run([*table, "--out", str(plan / "table.tex")]) == 14  # a file is no folder
    assert "cannot make the folder" in capsys.readouterr().err
    assert cli.run([*table, "--format", "latex", "--out", str(tmp_path / "table.tex")]) == 0
    assert (tmp_path / "table.tex").read_text().count(r" \\") == 6
    capsys.readouterr()
    assert cli.run([*table, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [sorted(row["cells"]["text"]) for row in rows] == [["1", "2"]] * 3 + [["1"]]


def test_pictures_of_a_batch_are_scored_without_a_plan(
    plan: Path,
    tmp_path: Path,
    tiny_pipeline_folder: Path,
    clip_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs, out = tmp_path / "jobs.jsonl", tmp_path / "batch"
    jobs.write_text('{"prompt": "a photo of sks dog", "concepts": ["me/dog"], "steps": 2}')
    base = ["--base", str(tiny_pipeline_folder)]
    assert cli.run(["batch", str(jobs), "--out", str(out), *base]) == 0
    capsys.readouterr()
    score = ["evaluate", "score", str(out), "--clip", str(clip_folder)]
    given = ["--references", f"dog={tmp_path / 'photos' / 'dog'}"]
    assert cli.run([*score, *given, "--method", "by hand", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["pictures"] == 1
    content = keeps_to("scores", out / "scores.json")
    assert content["method"] == "by hand" and content["pictures"][0]["subjects"] == ["dog"]


def test_what_cannot_be_measured_says_what_to_give(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos" / "dog"
    for arguments, code, words in (
        (["score", str(photos)], 2, "--clip FOLDER"),
        (["score", str(photos), "--preset", "demo", "--clip", str(photos)], 2, "not --clip"),
        (["score", str(photos), "--preset", "demo", "--references", "none"], 10, "no folder none"),
        (["score", str(tmp_path / "none"), "--preset", "demo"], 10, "no folder"),
        (["table", str(tmp_path / "none.json")], 10, "no file"),
        (["generate", str(plan), "--out", "x", "--base", "demo", "--row", "none"], 2, "no row"),
        (["generate", str(plan), "--out", str(plan), "--base", "demo"], 14, "cannot make the"),
        (["score", str(photos), "--preset", "demo", "--references", "~no one/x"], 10, "no folder"),
        (["plan", str(tmp_path / "none.json")], 10, "no file"),
    ):
        capsys.readouterr()
        assert cli.run(["evaluate", *arguments]) == code
        assert words in capsys.readouterr().err
    assert cli.run(["evaluate", "plan", str(plan), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["pictures_per_row"] == {"1": 2, "2": 2} and said["pictures"] == 12


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A list as CustomConcept101 publishes it: one pair of subjects with its prompts beside it."""
    entries: list[dict[str, str]] = []
    for number, noun in enumerate(("dog", "bear")):
        folder = tmp_path / "benchmark_dataset" / f"pet_{noun}1"
        folder.mkdir(parents=True)
        for at in range(2):
            pixels = np.random.default_rng([number, at]).integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{at}.png")
        entries.append(
            {
                "instance_prompt": f"photo of a <new{number + 1}> {noun}",
                "class_prompt": noun,
                "instance_data_dir": f"./benchmark_dataset/pet_{noun}1",
                "prompt_filename": f"prompts/{noun}.txt",
            }
        )
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "dog.txt").write_text("a photo of {}\n")
    (tmp_path / "prompts" / "pet_pet.txt").write_text("{0} and {1} on the wall. \n\n")
    file = tmp_path / "dataset_multiconcept.json"
    together = [*entries, {"prompt_filename_compose": "prompts/pet_pet.txt"}]
    file.write_text(json.dumps([entries[0], together]))
    return file


def benchmark(source: Path, run: Path, base: Path, clip: Path) -> list[str]:
    """A benchmark at its smallest, as it is typed."""
    command = ["evaluate", "benchmark", str(source), "--base", str(base), "--out", str(run)]
    command += ["--clip", str(clip), "--preset", "clip", "--seeds", "1"]
    return [*command, "--learning-steps", "1", "--device", "cpu"]


def test_a_dry_run_of_a_benchmark_writes_the_plan_and_nothing_else(
    published: Path,
    tmp_path: Path,
    tiny_pipeline_folder: Path,
    clip_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    command = benchmark(published, run, tiny_pipeline_folder, clip_folder)
    command += ["--rival", "textual-inversion"]
    assert cli.run([*command, "--dry-run"]) == 0
    assert not (run / "registry").exists()
    content = keeps_to("plan", run / "plan.json")
    assert content["prompts"] == [
        "a photo of {pet_dog1}",
        "{pet_dog1} and {pet_bear1} on the wall.",
    ]
    tokens = {each["token"] for each in content["subjects"].values()}
    assert len(tokens) == 2 and "" not in tokens
    assert [row["name"] for row in content["rows"]] == [
        *("base", "cones", "textual-inversion", "real"),
    ]
    capsys.readouterr()
    assert cli.run([*command, "--sets", "0", "--seeds", "3"]) == 11
    assert "another plan" in capsys.readouterr().err


def test_a_published_benchmark_is_learnt_drawn_scored_and_tabulated_by_one_command(
    published: Path,
    tmp_path: Path,
    tiny_pipeline_folder: Path,
    clip_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    command = benchmark(published, run, tiny_pipeline_folder, clip_folder)
    assert cli.run(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "table.md")
    ours = keeps_to("gallery", run / "cones" / "gallery.json")
    assert [each["subjects"] for each in ours["pictures"]] == [
        ["pet_dog1"],
        ["pet_dog1", "pet_bear1"],
    ]
    text = (run / "table.md").read_text()
    assert "| cones |" in text and "2 subjects" in text
    before = (run / "cones" / "pictures" / "000002-001.png").stat().st_mtime_ns
    assert cli.run(command) == 0  # started again, nothing is learnt or drawn anew
    assert (run / "cones" / "pictures" / "000002-001.png").stat().st_mtime_ns == before

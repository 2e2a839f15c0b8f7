"""cones extract: what it refuses before it learns, and what it keeps when something fails."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from cones_registry import cli
from cones_registry.codec import load_file
from cones_registry.generation import read_recipe
from cones_registry.registry import Registry
from cones_registry.seed import MAX_SEED

WORDS = ["--token", "sks", "--class-noun", "dog"]
QUICK = ["--method", "first-order", "--steps", "1", "--density", "0.1"]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONES_REGISTRY", str(tmp_path / "concepts"))
    assert cli.run(["init"]) == 0
    return tmp_path / "concepts"


@pytest.fixture
def learn(registry: Path, tmp_path: Path, tiny_pipeline_folder: Path) -> list[str]:
    """The command that learns a dog of one picture in a second."""
    Image.new("RGB", (20, 20), "red").save(tmp_path / "dog.png")
    base = ["--base", str(tiny_pipeline_folder)]
    return ["extract", str(tmp_path / "dog.png"), *WORDS, *base, *QUICK]


@pytest.mark.parametrize(
    ("out", "code", "fact"),
    [
        ("file/dog.parquet", 14, "is a file"),
        ("none/dog.parquet", 10, "Create it first"),
        ("folder", 14, "it is a folder"),
        ("s3://bucket/dog.parquet", 2, "--push REF"),
    ],
)
def test_a_place_where_no_mask_can_be_written_is_refused_before_learning(
    learn: list[str],
    registry: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    out: str,
    code: int,
    fact: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert cli.run([*learn, "--out", out, "--push", "alice/dog", "--base", "none"]) == code
    assert fact in capsys.readouterr().err
    assert Registry.open(registry).find() == []


def test_the_concept_is_pushed_before_its_file_is_written(
    learn: list[str],
    registry: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / ("x" * 250)  # with the ending of an unfinished file, longer than a name can be
    capsys.readouterr()
    assert cli.run([*learn, "--out", str(out), "--push", "alice/dog", "--note", "mine"]) == 14
    assert capsys.readouterr().out == "alice/dog:1\n"
    assert Registry.open(registry).get("alice/dog").note == "mine"
    file = tmp_path / "dog.parquet"
    assert cli.run([*learn, "--out", str(file)]) == 0
    assert load_file(file) == Registry.open(registry).pull("alice/dog")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["nothere/"], "IMAGE"),
        (["--push", "bob/x"], "--push"),
        (["--method", "gates", "--density", ".01"], "--method, --density"),
        (["--seed", "0", "--scope", "subject"], "--scope, --seed"),
        (["--keep-scores", "--tag", "pet", "--note", ""], "--keep-scores, --tag, --note"),
    ],
)
def test_what_each_line_of_a_batch_says_for_itself_is_refused_beside_it(
    registry: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    named: str,
) -> None:
    lines = tmp_path / "subjects.jsonl"
    lines.write_text("")
    run = ["extract", "--batch", str(lines), "--base", "none", "--out", str(tmp_path / "run")]
    assert cli.run([*run, *given]) == 2
    assert f"{named} and --batch" in capsys.readouterr().err.replace("...", "")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--keep-going"], "--keep-going"),
        (["--engine", "ray", "--workers", "2"], "--engine, --workers"),
        (["--device", "cpu", "--device", "cpu"], "several --device"),
    ],
)
def test_options_of_a_batch_are_refused_for_one_concept(
    learn: list[str], capsys: pytest.CaptureFixture[str], given: list[str], named: str
) -> None:
    assert cli.run([*learn, "--push", "alice/dog", *given]) == 2
    assert f"{named} without --batch" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", str(MAX_SEED + 1), "1180591620717411303424"])
def test_a_seed_that_is_none_is_a_usage_error(learn: list[str], seed: str) -> None:
    assert cli.run([*learn, "--push", "alice/dog", "--seed", seed]) == 2


def test_the_last_seed_can_be_learnt_with_and_kept(learn: list[str], registry: Path) -> None:
    assert cli.run([*learn, "--push", "alice/dog", "--seed", str(MAX_SEED)]) == 0
    provenance = Registry.open(registry).get("alice/dog").provenance
    assert provenance is not None
    assert provenance.seed == MAX_SEED


def test_a_density_of_no_neuron_is_refused_with_advice(
    learn: list[str], registry: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*learn, "--push", "alice/dog", "--density", "1e-8"]) == 2
    assert "Ask for at least" in capsys.readouterr().err
    assert Registry.open(registry).find() == []


def test_a_run_cannot_be_kept_in_a_file(
    registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt": "a dog"}')
    for verb in (["batch", str(lines)], ["extract", "--batch", str(lines)]):
        for out in (tmp_path / "file", tmp_path / "file" / "run"):
            assert cli.run([*verb, "--base", "none", "--out", str(out)]) == 14
            assert "is a file" in capsys.readouterr().err


def test_a_concept_is_kept_with_pictures_of_it(
    learn: list[str],
    registry: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cli.run([*learn, "--push", "alice/dog", "--previews", "2"]) == 0
    opened = Registry.open(registry)
    concept = opened.get("alice/dog")
    assert len(concept.previews) == 2
    files = [opened.preview(digest) for digest in concept.previews]
    recipes = [read_recipe(each) for each in files]
    assert [recipe["seed"] for recipe in recipes] == [0, 1]
    (said,) = recipes[0]["concepts"]
    assert said["ref"] == f"alice/dog@{concept.mask_digest}"
    assert all(token in recipes[0]["prompt"] for token in (concept.token or "?", "dog"))

    # The recipe names the very concept, so the picture can be drawn again from it.
    picture = tmp_path / "kept.webp"
    picture.write_bytes(files[0])
    capsys.readouterr()
    assert cli.run(["show", str(picture)]) == 0
    assert "cones generate" in capsys.readouterr().out

    seen: list[str] = []
    monkeypatch.setattr("click.launch", seen.append)
    assert cli.run(["show", "alice/dog", "--open"]) == 0
    assert concept.previews[1] in capsys.readouterr().out
    assert [Path(each).read_bytes() for each in seen] == files

    assert cli.run([*learn, "--push", "alice/plain", "--previews", "0"]) == 0
    assert opened.get("alice/plain").previews == ()
    assert cli.run(["show", "alice/plain", "--open"]) == 10


def test_a_mask_file_is_pushed_with_any_picture(
    learn: list[str], registry: Path, tmp_path: Path
) -> None:
    mask = tmp_path / "dog.parquet"
    assert cli.run([*learn, "--out", str(mask)]) == 0
    picture = tmp_path / "large.jpg"
    Image.new("RGB", (1200, 600), "red").save(picture)
    for name in ("alice/dog", "bob/dog"):
        assert cli.run(["push", name, str(mask), "--preview", str(picture)]) == 0
    opened = Registry.open(registry)
    (digest,) = opened.get("alice/dog").previews
    assert opened.get("bob/dog").previews == (digest,)  # kept once
    with Image.open(io.BytesIO(opened.preview(digest))) as kept:
        assert (kept.format, kept.size) == ("WEBP", (512, 256))
    (tmp_path / "none.png").write_bytes(b"none")
    wrong = ["push", "alice/dog", str(mask), "--preview", str(tmp_path / "none.png")]
    assert cli.run(wrong) == 13

"""cones show PICTURE: the recipe as it is, and the command that draws the picture again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cones_registry import cli
from cones_registry.cli import generate
from cones_registry.generation import encode_picture
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask
from cones_registry.registry import Registry

BASE = "sha256:" + "ab" * 32
CONCEPT = {
    "ref": "alice/dog:1",
    "mask_digest": "sha256:" + "12" * 32,
    "blob_digest": "sha256:" + "34" * 32,
    "scope": "subject",
    "token": "sks",
    "class_noun": "dog",
}
RECIPE = {
    "format": "cones recipe 1",
    "prompt": "a photo of sks dog",
    "negative_prompt": "",
    "seed": 5,
    "steps": 2,
    "guidance": 7.5,
    "size": None,
    "scheduler": "DDIMScheduler",
    "mask_unconditional": True,
    "base": BASE,
    "dtype": "float32",
    "composition": "sha256:" + "cd" * 32,
    "concepts": [CONCEPT],
    "versions": {"torch": "2"},
}
DRAWN = "cones generate 'a photo of sks dog' -c alice/dog:1 --seed 5 --steps 2 --guidance 7.5"

Show = Callable[..., tuple[int, str, str]]


@pytest.fixture
def show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Show:
    """``show(key=value, …)``: exit code, stdout and stderr for RECIPE with other values."""
    monkeypatch.delenv("CONES_REGISTRY", raising=False)
    monkeypatch.setenv("CONES_CACHE", str(tmp_path / "cache"))

    def run(*options: str, **changes: Any) -> tuple[int, str, str]:
        recipe = {key: value for key, value in (RECIPE | changes).items() if value is not ...}
        file = tmp_path / "picture.png"
        file.write_bytes(encode_picture(Image.new("RGB", (8, 8)), recipe))
        code = cli.run(["show", str(file), *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def again(out: str) -> str:
    (line,) = (line for line in out.splitlines() if line.startswith("again"))
    return line.removeprefix("again").strip()


def test_the_type_the_picture_was_drawn_in_is_named_where_it_is_not_the_default(show: Show) -> None:
    assert "--dtype" not in again(show()[1])
    assert "--dtype float16" in again(show(dtype="float16")[1])


def test_the_base_model_is_named_where_no_registry_knows_where_it_is_from(
    show: Show, tmp_path: Path
) -> None:
    table = LayerTable.from_shapes({"a.to_k.weight": (4, 4)})
    mask = ConceptMask.from_indices(table, {"a.to_k.weight": [1, 2]})
    registry = Registry.create(tmp_path / "concepts")
    for name, fingerprint, source in (("dog", BASE, "demo"), ("cat", "sha256:" + "0" * 64, None)):
        base = SimpleNamespace(fingerprint=fingerprint, layer_table=table, published_source=source)
        registry.push(f"alice/{name}", mask, base=base, scope="prompt")
    named = ["-r", registry.url]

    code, out, _ = show(*named)
    assert (code, again(out)) == (0, DRAWN)
    assert again(show(*named, concepts=[])[1]).endswith("--base demo")
    for unknown in (show(), show(*named, base="sha256:" + "0" * 64), show(*named, base="../x")):
        assert again(unknown[1]) == f"{DRAWN} --base MODEL"
        assert "MODEL is the folder or the hub id" in unknown[1]
    assert again(show("-r", str(tmp_path / "none"))[1]).endswith("--base MODEL")


def test_a_prompt_that_names_concepts_is_shown_as_read_and_drawn_with_exact_versions(
    show: Show,
) -> None:
    read = {
        "prompt": "a photo of sks dog",
        "negative_prompt": "",
        "exact_prompt": "a photo of <alice/dog:1>",
        "exact_negative_prompt": "",
    }
    star = CONCEPT | {"ref": "bob/star:2"}
    out = show(prompt="a photo of <alice/dog:prod>", read=read, concepts=[CONCEPT, star])[1]
    assert "a photo of <alice/dog:prod>" in out
    assert "a photo of sks dog" in out
    assert again(out).startswith("cones generate 'a photo of <alice/dog:1>' -c bob/star:2 --seed 5")


def test_a_picture_that_generate_cannot_draw_says_why(show: Show) -> None:
    for changes, reason in (
        ({"baseline": "dreambooth", "concepts": []}, "a model that dreambooth trained"),
        ({"steps": ..., "guidance": ...}, "does not say steps, guidance"),
        ({"concepts": [{"ref": None}]}, "the ref of a concept"),
        ({"prompt": "half \ud800"}, "halves of characters"),
    ):
        code, out, _ = show(**changes)
        assert code == 0
        assert reason in out
        assert "cones generate" not in out


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "cones recipe 2"},
        {"format": 1},
        {"prompt": ["a"]},
        {"seed": "5"},
        {"seed": True},
        {"steps": 2.5},
        {"guidance": float("inf")},
        {"guidance": "high"},
        {"size": 5},
        {"size": [1]},
        {"size": ["8", "8"]},
        {"versions": [1]},
        {"versions": {"torch": 2}},
        {"concepts": [1]},
        {"concepts": 1},
        {"concepts": [{"ref": 1}]},
        {"mask_unconditional": "yes"},
        {"base": {}},
        {"read": "a dog"},
        {"dtype": 16},
    ],
)
def test_a_recipe_of_another_shape_is_corrupt_data(show: Show, changes: dict[str, Any]) -> None:
    for options in ((), ("--json",)):
        code, out, err = show(*options, **changes)
        assert code == 13
        assert "recipe's" in err
        assert not out


def test_a_recipe_too_deep_to_read_is_corrupt_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chunks = PngInfo()
    chunks.add_itxt("cones", '{"prompt": ' + "[" * 100_000)
    Image.new("RGB", (8, 8)).save(tmp_path / "deep.png", pnginfo=chunks)
    assert cli.run(["show", str(tmp_path / "deep.png")]) == 13
    assert "not JSON" in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_nothing_of_a_recipe_is_obeyed_by_a_terminal(show: Show, options: tuple[str, ...]) -> None:
    evil = "a\x1b[2J\x1b]0;x\x07\x9b31m\u202e\u2028 dog\nagain  rm"
    concept = {**CONCEPT, "ref": evil, "mask_digest": evil}
    code, out, err = show(
        *options,
        prompt=evil,
        negative_prompt=evil,
        scheduler=evil,
        base=evil,
        dtype=evil,
        composition=evil,
        concepts=[concept],
        versions={evil: evil},
        new=evil,
    )
    assert (code, err) == (0, "")
    assert all(each.isprintable() or each == "\n" for each in out)
    if options:
        assert json.loads(out)["prompt"] == evil
    code, out, _ = show(*options, baseline=evil, prompt="\ud800")
    assert code == 0
    assert all(each.isprintable() or each == "\n" for each in out)


def test_what_draws_again_is_read_as_it_was_meant(show: Show) -> None:
    for prompt, negative in (
        ("a 'red' dog", "it's; rm -rf ~"),
        ("--out=/etc/passwd", "--json"),
        ("-c", ""),
        ("größer 狗 $HOME", "a\\b"),
    ):
        command = again(show(prompt=prompt, negative_prompt=negative, size=[16, 24])[1])
        program, verb, *words = shlex.split(command)
        assert (program, verb) == ("cones", "generate")
        context = generate.command.make_context("generate", words, resilient_parsing=True)
        assert isinstance(context, click.Context)
        assert context.params["prompt"] == prompt
        assert context.params["negative"] == negative
        assert context.params["size"] == (16, 24)
        assert context.params["refs"] == ("alice/dog:1",)
        assert context.params["out"] == Path("picture.png")

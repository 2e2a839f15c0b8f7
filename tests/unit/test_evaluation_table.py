"""Tables: what may stand side by side, what they may claim, and what their intervals mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from cones_registry.errors import ConflictError, CorruptDataError, UsageError
from cones_registry.evaluation.bootstrap import interval
from cones_registry.evaluation.gallery import read_gallery
from cones_registry.evaluation.presets import PRESETS
from cones_registry.evaluation.report import FORMS
from cones_registry.evaluation.scores import PictureScore, Scores, read_scores
from cones_registry.evaluation.table import PAPER_NEURONS, make_table

SCHEMA = Path(__file__).parents[2] / "schema"
BAD = {
    "scores": {
        "preset-without-text-scale": "no text_scale",
        "backbone-without-name": "no name",
        "text-not-a-number": "text is 'high'",
        "image-not-numbers": "one of image is 'high'",
        "picture-not-an-object": "one of pictures is 7",
        "bytes-not-a-number": "bytes_per_concept is 'few'",
    },
    "gallery": {"text-not-text": "text is 5"},
}


def scores(method: str = "cones", preset: str = "paper", count: int = 4, **changes: Any) -> Scores:
    pictures = tuple(
        PictureScore(f"{n}.png", ("dog", "cat")[: 1 + n % 2], 0.1 * n, (0.5, 0.7)[: 1 + n % 2])
        for n in range(count)
    )
    made = Scores(method, PRESETS[preset].to_json(), {"clip": {"model": "m"}}, "likeness", pictures)
    return replace(made, **changes)


def test_a_cell_is_the_mean_over_the_pictures_with_that_many_subjects() -> None:
    row = make_table([scores(bytes_per_concept=24_400.0)]).rows[0]
    assert row.cells["text"][1].mean == pytest.approx(0.1)  # pictures 0 and 2
    assert row.cells["text"][2].mean == pytest.approx(0.2)
    assert row.cells["image"][2].mean == pytest.approx(0.6)
    assert row.cells["presence"] == {}
    assert row.cells["text"][1].count == 2


def test_scores_of_two_presets_never_share_a_column() -> None:
    with pytest.raises(ConflictError, match="never one column for both"):
        make_table([scores(), scores("rival", preset="customconcept101")])
    with pytest.raises(ConflictError, match="never one column for both"):
        make_table([scores(), scores("rival", facts={"clip": {"model": "another"}})])
    with pytest.raises(ConflictError, match="one name"):
        make_table([scores(), scores()])


@pytest.mark.parametrize("title", ["The paper's table", "the PAPER’S table again"])
def test_only_the_papers_setting_may_claim_to_be_the_papers_table(title: str) -> None:
    honest = {
        "base_source": "CompVis/stable-diffusion-v1-4",
        "base_neurons": PAPER_NEURONS,
        "count": 2000,
    }
    assert make_table([scores(**honest)], title=title).differences == ()
    for change, reason in (
        ({"preset": "clip"}, "preset"),
        ({"base_source": "demo"}, "base model"),
        ({"base_neurons": 7}, "base model"),
        ({"count": 1998}, "n is"),
    ):
        with pytest.raises(UsageError, match=reason):
            make_table([scores(**(honest | change))], title=title)
    different = make_table([scores(**(honest | {"base_source": "demo"}))])
    assert "Not comparable" in FORMS["markdown"](different)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_says_preset_numbers_and_storage(form: str) -> None:
    text = FORMS[form](make_table([scores(bytes_per_concept=24_400.0), scores("a_b | c")]))
    assert "paper" in text and "0.6" in text and "24" in text
    if form == "json":
        assert json.loads(text)["rows"][0]["cells"]["text"]["1"]["count"] == 2
    if form == "latex":
        assert r"a\_b" in text


def shares(values: Sequence[float], groups: Sequence[int]) -> tuple[float, float]:
    found = interval(values, groups)
    assert found.low <= found.mean <= found.high
    return found.low, found.high


def test_an_interval_holds_the_mean_and_narrows_with_more_sets_of_subjects() -> None:
    generator = np.random.default_rng(3)
    level = generator.normal(size=40)
    few = [(float(x), 0 if n < 20 else 1) for n, x in enumerate(level)]
    many = [(float(x), n % 20) for n, x in enumerate(level)]
    assert shares(*zip(*many, strict=True)) == shares(*zip(*many, strict=True))  # deterministic
    wide, narrow = (
        high - low
        for low, high in (
            # All of the spread lies between the two sets, or within each of them.
            shares([value + 3 * group for value, group in few], [group for _, group in few]),
            shares([value + 3 * (n % 2) for n, (value, _) in enumerate(many)], range(40)),
        )
    )
    assert wide > 2 * narrow
    assert shares([0.5] * 6, [0] * 6) == (0.5, 0.5)


@pytest.mark.parametrize("kind", ["scores", "gallery"])
def test_a_file_with_a_wrong_field_is_corrupt_and_says_which(tmp_path: Path, kind: str) -> None:
    schema = json.loads((SCHEMA / f"evaluation-{kind}.schema.json").read_text("utf-8"))
    example = SCHEMA / "examples" / f"evaluation-{kind}.json"
    jsonschema.validate(json.loads(example.read_text("utf-8")), schema)

    def read(file: Path) -> object:
        shutil.copy(file, tmp_path / f"{kind}.json")
        return read_scores(tmp_path) if kind == "scores" else read_gallery(tmp_path)

    read(example)
    files = {
        file.stem.removeprefix(f"evaluation-{kind}-"): file
        for file in (SCHEMA / "bad").glob(f"evaluation-{kind}-*.json")
    }
    assert set(files) == set(BAD[kind])
    for rule, file in files.items():
        with pytest.raises(CorruptDataError, match=BAD[kind][rule]):
            read(file)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(file.read_text("utf-8")), schema)


def test_numbers_that_are_not_one_for_each_subject_are_corrupt(tmp_path: Path) -> None:
    content = json.loads((SCHEMA / "examples" / "evaluation-scores.json").read_text("utf-8"))
    content["pictures"][0]["presence"] = [1.0, 0.0]
    (tmp_path / "scores.json").write_text(json.dumps(content))
    with pytest.raises(CorruptDataError, match="presence has 2 numbers for 1 subjects"):
        read_scores(tmp_path)


def test_latex_says_title_and_warning_and_escapes_both() -> None:
    made = make_table([scores(method="a\\b~c", preset="clip")], title="100 % ours_\nat #1")
    text = FORMS["latex"](made)
    assert r"\caption{100 \% ours\_ at \#1}" in text
    assert text.startswith("% Not comparable with the numbers printed in arXiv 2303.05125: ")
    assert r"\footnotesize Not comparable with" in text  # seen by who reads the page, too
    assert r"a\textbackslash{}b\textasciitilde{}c &" in text
    assert text.index(r"\end{tabular}") < text.index(r"\footnotesize") < text.index(r"\end{table}")
    honest = {"base_source": "CompVis/stable-diffusion-v1-4", "base_neurons": PAPER_NEURONS}
    assert "Not comparable" not in FORMS["latex"](make_table([scores(count=2000, **honest)]))


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_a_line_break_in_a_name_ends_no_comment_heading_or_row(form: str) -> None:
    made = make_table([scores(method="one\ntwo", facts={"clip": {"model": "m"}})], title="a\nb")
    made = replace(made, preset={**made.preset, "source": "here\n\\input{x}"})
    lines = FORMS[form](made).splitlines()
    assert not any(line.startswith(("b", "two", "\\input")) for line in lines)

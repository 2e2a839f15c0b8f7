"""Benchmarks: published lists and folders of photos become plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cones_registry.errors import ConesError, CorruptDataError, NotFoundError, UsageError
from cones_registry.evaluation.benchmark import learning_lines, read_benchmark
from cones_registry.evaluation.plan import parse_plan


def photos(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "1.jpg").write_bytes(b"")
    return folder


def test_a_folder_of_folders_is_a_benchmark_of_one_to_four_subjects(tmp_path: Path) -> None:
    source = photos(
        tmp_path / "photos", "dog-rex", "cat-minka", "teddy_bear-old", "car-red", "car-blue"
    )
    (source / "notes").mkdir()
    read = read_benchmark(source, sets=3)
    plan = parse_plan(read.plan(seeds=2, rivals=("dreambooth",)), tmp_path)
    assert plan.subjects["teddy_bear-old"].noun == "teddy bear"
    sizes = {len(item.subjects) for item in plan.items}
    assert sizes == {1, 2, 3, 4}
    groups = [group for group in plan.groups() if len(group) == 3]
    assert len(groups) == 3
    for item in plan.items:
        tokens = [subject.token for subject in item.subjects]
        assert len(set(tokens)) == len(tokens)
    assert read_benchmark(source, sets=3).prompts == read.prompts
    assert read_benchmark(source, sets=3, shuffled=1).prompts != read.prompts


def test_a_folder_of_photos_that_only_extraction_knows_is_a_subject_too(tmp_path: Path) -> None:
    (tmp_path / "cat-minka").mkdir()
    (tmp_path / "cat-minka" / "1.HEIC").write_bytes(b"")
    assert list(read_benchmark(tmp_path, sets=0).subjects) == ["cat-minka"]


def test_what_is_learnt_is_what_the_plan_names(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos", "dog-Rex", "cat-minka")
    content = read_benchmark(source, sets=0).plan(seeds=1)
    lines = [
        json.loads(line) for line in learning_lines(parse_plan(content, tmp_path)).splitlines()
    ]
    row = next(row for row in content["rows"] if row["name"] == "cones")
    assert {line["name"] for line in lines} == set(row["concepts"].values())
    assert all(Path(line["images"]).is_dir() and "token" not in line for line in lines)


def entry(name: str, noun: str = "dog") -> dict[str, str]:
    return {
        "class_prompt": noun,
        "instance_data_dir": f"pictures/{name}",
        "prompt_filename": "one.txt",
    }


PAIR = {"prompt_filename_compose": "two.txt"}


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ({}, CorruptDataError, "expected a list"),
        ([], CorruptDataError, "expected a list"),
        ([5], CorruptDataError, "expected objects"),
        ([[entry("a"), entry("b")]], CorruptDataError, "a file of prompts"),
        ([[entry("a")] * 5 + [PAIR]], CorruptDataError, "1 to 4 subjects"),
        ([[entry("a"), entry("a"), PAIR]], CorruptDataError, "one subject twice"),
        ([entry("c")], NotFoundError, "Download the benchmark's pictures"),
        ([entry("a") | {"class_prompt": 5}], ConesError, "class_prompt"),
        (
            [[entry("a"), entry("b"), {"prompt_filename_compose": "none.txt"}]],
            NotFoundError,
            "none",
        ),
        (
            [[entry("a"), entry("b"), {"prompt_filename_compose": "one.txt"}]],
            CorruptDataError,
            "no place",
        ),
        ([[entry("a"), entry("b"), {"prompt_filename_compose": 1}]], CorruptDataError, "no file"),
    ],
)
def test_a_list_that_is_none_says_why(
    tmp_path: Path, content: Any, error: type[ConesError], words: str
) -> None:
    photos(tmp_path / "pictures", "a", "b")
    (tmp_path / "one.txt").write_text("a photo of {0}\n")
    (tmp_path / "two.txt").write_text("{0} and {1}\n")
    file = tmp_path / "list.json"
    file.write_text(json.dumps(content))
    with pytest.raises(error, match=words):
        read_benchmark(file, sets=0).plan(seeds=1)


def test_folders_without_a_noun_or_without_photos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rename the folder"):
        read_benchmark(photos(tmp_path / "unnamed", "rex"), sets=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no folder of photos"):
        read_benchmark(tmp_path / "empty", sets=0)


def test_one_folder_listed_twice_is_one_subject_and_two_of_one_name_are_two(tmp_path: Path) -> None:
    photos(tmp_path / "pictures", "a")
    photos(tmp_path / "more", "a")
    (tmp_path / "one.txt").write_text("a photo of {0}\n")
    other = entry("a") | {"instance_data_dir": "more/a"}
    file = tmp_path / "list.json"
    file.write_text(json.dumps([entry("a"), entry("a"), other]))
    read = read_benchmark(file, sets=0)
    assert sorted(read.subjects) == ["a", "a-2"]
    assert len(read.prompts) == 3
    assert len(read_benchmark(file, sets=1).prompts) == 1

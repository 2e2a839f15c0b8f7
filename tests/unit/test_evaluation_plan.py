"""Plans of an evaluation: what they draw, and that every bad one says why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cones_registry.batch import job
from cones_registry.errors import CorruptDataError, NotFoundError, UsageError
from cones_registry.evaluation.drawing import job_lines
from cones_registry.evaluation.plan import (
    MAX_GUIDANCE,
    MAX_SEED,
    MAX_SEEDS,
    MAX_STEPS,
    parse_plan,
    read_plan,
)
from cones_registry.evaluation.rows import BASELINES

SCHEMA = Path(__file__).parents[2] / "schema"
SUBJECTS = {
    name: {"token": token, "noun": name, "images": f"photos/{name}", "description": f"old {name}"}
    for name, token in (("dog", "sks"), ("bear", "v"), ("cat", "V1"))
}


def plan(**changes: Any) -> Any:
    content = {
        "format": "cones evaluation 1",
        "subjects": SUBJECTS,
        "prompts": ["a photo of {dog}"],
        "rows": [{"name": "base", "words": "noun"}],
    }
    return parse_plan(content | changes, Path("here"))


def test_numbered_places_are_filled_by_every_group_of_that_size_in_its_order() -> None:
    made = plan(
        groups=[["dog"], ["bear", "dog"], ["dog", "cat"]],
        prompts=["a photo of {1}", "{2} and {1}", "{cat} on a chair"],
        seeds=3,
        first_seed=100,
    )
    assert [item.prompt("noun") for item in made.items] == [
        "a photo of dog",
        "dog and bear",
        "cat and dog",
        "cat on a chair",
    ]
    assert [item.seed for item in made.items] == [100, 103, 106, 109]
    assert made.items[1].prompt("token") == "sks dog and v bear"
    assert made.items[1].prompt("description") == "old dog and old bear"
    assert made.counts() == {1: 6, 2: 6}


def test_a_rival_draws_with_the_smallest_set_that_holds_the_subjects_of_a_prompt() -> None:
    sets = [["dog"], ["dog", "bear"], ["dog", "bear", "cat"]]
    made = plan(
        prompts=["{dog}", "{bear}", "{bear} and {cat}"],
        rows=[{"name": "rival", "baseline": "lora", "sets": sets}, {"name": "x", "words": "noun"}],
    )
    rival = made.row("rival")
    assert [made.training_set(rival, item) for item in made.items] == [
        ("dog",),
        ("dog", "bear"),
        ("dog", "bear", "cat"),
    ]
    # 3 pictures for each of two rows, and 1 + 2 + 3 subjects to train.
    assert made.estimate(2.0, 10.0) == 2 * 3 * 2.0 + 6 * 10.0


def test_a_learning_rate_is_a_rivals_alone() -> None:
    rival = {"name": "rival", "baseline": "dreambooth", "learning_rate": 5e-6}
    made = plan(prompts=["{dog}"], rows=[rival])
    assert made.row("rival").learning_rate == 5e-6
    for wrong, reason in (
        (rival | {"learning_rate": 1}, "above 0 and below 1"),
        (rival | {"learning_rate": 0}, "above 0 and below 1"),
        ({"name": "x", "words": "noun", "learning_rate": 0.1}, "goes with baseline"),
    ):
        with pytest.raises(UsageError, match=reason):
            plan(prompts=["{dog}"], rows=[wrong])


def test_a_prompt_that_no_group_fills_is_told() -> None:
    with pytest.raises(UsageError, match="no group has as many subjects"):
        plan(groups=[["dog"]], prompts=["{1}", "{1} and {2}"])


def test_subjects_without_a_token_are_named_by_their_concepts() -> None:
    subjects = SUBJECTS | {"cat": {"noun": "cat", "images": "photos/cat"}}
    refs = {"dog": "me/dog:1", "bear": "me/bear:1", "cat": "bob/cat:prod"}
    rows = [{"name": "ours", "concepts": refs}, {"name": "base", "words": "noun"}]
    made = plan(subjects=subjects, prompts=["{dog} and {cat}", "{cat}"], rows=rows)
    ours, base = (
        [json.loads(line) for line in job_lines(made, made.row(name)).splitlines()]
        for name in ("ours", "base")
    )
    assert [(line["prompt"], line.get("concepts")) for line in ours] == [
        ("sks dog and <bob/cat:prod>", ["me/dog:1"]),
        ("<bob/cat:prod>", None),
    ]
    assert [line["prompt"] for line in base] == ["dog and cat", "cat"]


def test_masks_tuned_jointly_draw_the_prompts_that_name_just_their_subjects() -> None:
    single = {name: f"me/{name}:1" for name in ("dog", "bear", "cat")}
    tuned = [{"subjects": ["bear", "dog"], "concepts": ["me/both-sks:1", "me/both-v:1"]}]
    made = plan(
        prompts=["{dog}", "{dog} and {bear}", "{bear} and {cat}"],
        rows=[{"name": "ours", "concepts": single, "tuned": tuned}],
    )
    assert [made.row("ours").refs(item.subjects) for item in made.items] == [
        ["me/dog:1"],
        ["me/both-sks:1", "me/both-v:1"],
        ["me/bear:1", "me/cat:1"],
    ]
    for wrong in ([{"subjects": ["wolf"], "concepts": ["me/a"]}], [{"subjects": ["dog"]}], ["dog"]):
        with pytest.raises(UsageError):
            plan(prompts=["{dog}"], rows=[{"name": "x", "concepts": single, "tuned": wrong}])
    with pytest.raises(UsageError, match="goes with concepts"):
        plan(prompts=["{dog}"], rows=[{"name": "x", "words": "noun", "tuned": tuned}])


def test_the_example_and_the_schema_agree_with_the_reader() -> None:
    example = read_plan(SCHEMA / "examples" / "evaluation-plan.json")
    assert example.counts() == {1: 150, 2: 50}
    schema = json.loads((SCHEMA / "evaluation-plan.schema.json").read_text())
    row = schema["properties"]["rows"]["items"]["properties"]
    assert tuple(row["baseline"]["enum"]) == BASELINES
    known = {"name", "concepts", "words", "baseline", "steps", "learning_rate", "pictures"}
    assert set(row) == known | {"sets", "tuned"}


def test_the_rivals_a_plan_may_name_are_those_that_can_be_trained() -> None:
    from cones_registry.evaluation import baselines

    assert set(baselines.BASELINES) == set(BASELINES)


BAD = {
    "format-unknown": "format 'cones evaluation 2'",
    "no-place-for-a-subject": "no place for a subject",
    "row-with-two-methods": "exactly one of",
    "row-words-unknown": "expected one of noun, description",
    "baseline-unknown": "expected one of textual-inversion",
    "seeds-zero": "expected a whole number 1",
    "subject-without-noun": "needs a noun",
    "field-unknown": "unknown field 'colour'",
    "group-of-five": "1 to 4 subjects",
    "group-names-a-list": "one of group is .* expected str",
    "group-names-a-subject-twice": "names one thing twice",
    "guidance-not-a-number": "guidance is 'high', expected float",
    "guidance-true": "guidance is True",
    "steps-negative": "steps is -5, expected a whole number 1",
    "row-name-climbs-out": "no folder can have this name",
    "row-words-null": "words is None",
    "row-ref-not-text": "dog is 5, expected str",
    "row-steps-without-baseline": "steps goes with baseline",
}


@pytest.mark.parametrize(
    "file", sorted((SCHEMA / "bad").glob("evaluation-plan-*.json")), ids=lambda path: path.stem
)
def test_every_counter_example_is_refused_for_its_rule_by_reader_and_schema(file: Path) -> None:
    rule = file.stem.removeprefix("evaluation-plan-")
    with pytest.raises((UsageError, CorruptDataError), match=BAD[rule]):
        read_plan(file)
    schema = json.loads((SCHEMA / "evaluation-plan.schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(file.read_text()), schema)


def test_every_rule_has_its_counter_example() -> None:
    files = (SCHEMA / "bad").glob("evaluation-plan-*.json")
    assert {path.stem.removeprefix("evaluation-plan-") for path in files} == set(BAD)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompts": ["{horse}"]}, "no subject"),
        ({"prompts": ["{1} and {dog}"], "groups": [["dog"]]}, "places"),
        ({"prompts": ["{1} and {2}"], "groups": [["dog"]]}, "no group has as many subjects"),
        ({"rows": [{"name": "x", "concepts": {"dog": "a/dog"}}]}, "ref for each subject"),
        ({"rows": [{"name": "x", "words": "noun"}] * 2}, "name of its own"),
        ({"rows": [{"name": n, "words": "noun"} for n in ("a/b", "a b")]}, "share the folder a-b"),
        ({"rows": [{"name": "x" * 201, "words": "noun"}]}, "no folder can have this name"),
        ({"rows": []}, "no rows"),
        ({"seeds": True}, "seeds is True"),
        ({"seeds": 2, "first_seed": 2**63 - 2, "prompts": ["{dog}", "{cat}"]}, "pass the last"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance": 10**400}, "guidance is inf"),
        ({"subjects": {"dog": SUBJECTS["dog"] | {"images": "~no such user/x"}}}, "images '~no"),
        ({"subjects": {"dog": SUBJECTS["dog"] | {"images": "a\0b"}}}, "no name of a folder"),
        (
            {
                "subjects": {"dog": SUBJECTS["dog"] | {"token": ""}},
                "rows": [{"name": "x", "baseline": "lora"}],
            },
            "token for every subject",
        ),
        (
            {"rows": [{"name": "x", "baseline": "lora", "sets": [["dog", "dog"]]}]},
            "names one thing twice",
        ),
    ],
)
def test_what_a_schema_cannot_say_is_refused_too(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        plan(**changes)


def test_a_plan_may_say_what_a_job_file_may() -> None:
    assert (MAX_SEEDS, MAX_SEED, MAX_STEPS, MAX_GUIDANCE) == (
        job.MAX_COUNT,
        job.MAX_SEED,
        job.MAX_STEPS,
        job.MAX_GUIDANCE,
    )
    said = json.loads((SCHEMA / "evaluation-plan.schema.json").read_text())["properties"]
    assert [said[each]["maximum"] for each in ("seeds", "first_seed", "steps")] == [
        job.MAX_COUNT,
        job.MAX_SEED,
        job.MAX_STEPS,
    ]
    assert said["guidance"]["exclusiveMaximum"] == job.MAX_GUIDANCE


@pytest.mark.parametrize("text", ['{"guidance": NaN}', '{"prompts": ["a \\ud800 {dog}"]}'])
def test_a_file_with_what_json_cannot_hold_is_corrupt(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(CorruptDataError, match=r"NaN is no number|half a character"):
        read_plan(tmp_path / "plan.json")


def test_a_missing_plan_and_one_that_is_no_json_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_plan(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"format":')
    with pytest.raises(CorruptDataError):
        read_plan(tmp_path / "torn.json")


def test_planning_loads_no_model_library() -> None:
    file = SCHEMA / "examples" / "evaluation-plan.json"
    code = (
        "import sys\n"
        "from cones_registry.cli import run\n"
        f"assert run(['evaluate', 'plan', {str(file)!r}]) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "about" in done.stderr and "concepts" in done.stdout

"""Job lines: what a line may say, and that every bad one is reported with its number."""

import json
from pathlib import Path

import jsonschema
import pytest

from cones_registry.batch.fields import BadJobsError, lines_digest
from cones_registry.batch.job import Job, parse_jobs
from cones_registry.errors import UsageError

SCHEMA = Path(__file__).parents[2] / "schema"


def test_full_line_is_read_as_written() -> None:
    line = {
        "prompt": "a photo of sks dog",
        "concepts": ["alice/dog:prod*0.7", "barn@sha256:" + "0" * 64],
        "seed": 7,
        "steps": 20,
        "guidance": 3,
        "size": [512, 768],
        "scheduler": "dpm",
        "negative_prompt": "blurred",
        "count": 4,
        "mask_unconditional": False,
    }
    jobs, bad = parse_jobs("\n" + json.dumps(line) + "\n\n")
    assert bad == []
    assert jobs == [
        Job(
            2,
            "a photo of sks dog",
            ("alice/dog:prod*0.7", "barn@sha256:" + "0" * 64),
            7,
            20,
            3.0,
            (512, 768),
            "dpm",
            "blurred",
            4,
            False,
        )
    ]
    assert jobs[0].weighted == (("alice/dog:prod", 0.7), ("barn@sha256:" + "0" * 64, 1))


def test_prompt_alone_is_enough() -> None:
    assert parse_jobs('{"prompt": "a dog"}') == ([Job(1, "a dog")], [])


BAD = {
    "not-json": "a dog",
    "not-an-object": '["a dog"]',
    "no-prompt": '{"seed": 1}',
    "empty-prompt": '{"prompt": " "}',
    "prompt-of-half-a-character": '{"prompt": "a \\ud800 circle"}',
    "negative-prompt-of-half-a-character": '{"prompt": "a", "negative_prompt": "\\udfff"}',
    "unknown-field": '{"prompt": "a", "promt": "b"}',
    "field-twice": '{"prompt": "a", "prompt": "b"}',
    "seed-below-zero": '{"prompt": "a", "seed": -1}',
    "seed-not-whole": '{"prompt": "a", "seed": 1.5}',
    "seed-true": '{"prompt": "a", "seed": true}',
    "seed-too-large": '{"prompt": "a", "seed": 9223372036854775808}',
    "seeds-run-past-the-last": '{"prompt": "a", "seed": 9223372036854775807, "count": 2}',
    "steps-zero": '{"prompt": "a", "steps": 0}',
    "more-steps-than-a-model-knows": '{"prompt": "a", "steps": 1001}',
    "guidance-not-a-number": '{"prompt": "a", "guidance": NaN}',
    "guidance-negative": '{"prompt": "a", "guidance": -1}',
    "size-one-number": '{"prompt": "a", "size": 512}',
    "size-zero": '{"prompt": "a", "size": [0, 512]}',
    "size-not-a-multiple-of-8": '{"prompt": "a", "size": [512, 500]}',
    "size-too-large": '{"prompt": "a", "size": [16392, 512]}',
    "scheduler-unknown": '{"prompt": "a", "scheduler": "fast"}',
    "concepts-not-a-list": '{"prompt": "a", "concepts": "dog"}',
    "concept-not-a-ref": '{"prompt": "a", "concepts": ["a//b"]}',
    "concept-twice": '{"prompt": "a", "concepts": ["dog", "dog"]}',
    "weight-zero": '{"prompt": "a", "concepts": ["dog*0.0"]}',
    "weight-above-one": '{"prompt": "a", "concepts": ["dog*1.5"]}',
    "weight-no-number": '{"prompt": "a", "concepts": ["dog*much"]}',
    "mask-unconditional-not-a-choice": '{"prompt": "a", "mask_unconditional": "yes"}',
    "count-zero": '{"prompt": "a", "count": 0}',
    "deep": '{"prompt": ' + "[" * 100_000 + "}",
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD.keys())
def test_bad_line_is_reported_with_its_number(line: str) -> None:
    jobs, bad = parse_jobs('{"prompt": "good"}\n' + line + '\n{"prompt": "good too"}')
    assert [job.line for job in jobs] == [1, 3]
    assert [each.line for each in bad] == [2]
    error = BadJobsError(bad)
    assert isinstance(error, UsageError)
    assert "line 2: " in str(error)
    assert len(str(error)) < 1000


def test_digest_is_of_what_is_said_and_not_of_its_spelling() -> None:
    first = '{"prompt": "a", "seed": 1}\n'
    assert lines_digest(first) == lines_digest('{"seed":1,  "prompt":"a"}')
    assert lines_digest(first) != lines_digest('{"prompt": "a", "seed": 2}')
    assert lines_digest(first) != lines_digest("\n" + first), "line numbers name the pictures"


def test_a_line_ends_at_a_line_feed_and_nowhere_else() -> None:
    jobs, bad = parse_jobs('{"prompt": "a\u2028b"}\r\n{"prompt": "c\x85d"}\r\n')
    assert bad == []
    assert [(job.line, job.prompt) for job in jobs] == [(1, "a\u2028b"), (2, "c\x85d")]


def test_schema_and_parser_agree() -> None:
    schema = json.loads((SCHEMA / "batch-job.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    examples = (SCHEMA / "examples" / "batch-jobs.jsonl").read_text()
    jobs, bad = parse_jobs(examples)
    assert bad == []
    assert len(jobs) >= 3
    for line in examples.splitlines():
        validator.validate(json.loads(line))
    beyond_a_schema = {
        *("not-json", "field-twice", "deep", "seeds-run-past-the-last"),
        *("prompt-of-half-a-character", "negative-prompt-of-half-a-character"),
    }
    for rule, line in BAD.items():
        if rule not in beyond_a_schema | {"concept-not-a-ref", "guidance-not-a-number"}:
            assert not validator.is_valid(json.loads(line)), rule


@pytest.mark.parametrize(
    "file", sorted((SCHEMA / "bad").glob("batch-job-*.json")), ids=lambda path: path.stem
)
def test_bad_examples_break_the_rule_in_their_name(file: Path) -> None:
    rule = file.stem.removeprefix("batch-job-")
    assert json.loads(file.read_text()) == json.loads(BAD[rule])
    jobs, bad = parse_jobs(file.read_text().strip())
    assert jobs == []
    assert len(bad) == 1

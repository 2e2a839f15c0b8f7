"""Many concepts in one run: resumed without learning or pushing anything twice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from cones_registry.batch import (
    BadJobsError,
    BatchReport,
    Compositions,
    LocalEngine,
    run_learning,
)
from cones_registry.batch.subject import parse_subjects
from cones_registry.codec import load_file
from cones_registry.errors import ConflictError
from cones_registry.registry import Registry


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("dog", "star", "cross"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(2):
            values = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(values).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.create(tmp_path / "registry", cache=tmp_path / "cache") as registry:
        yield registry


def lines(photos: Path, **changes: Any) -> str:
    return "\n".join(
        json.dumps(
            {
                "name": f"alice/{name}",
                "images": str(photos / name),
                "token": "sks",
                "class_noun": name,
                "method": "first-order",
                "density": 0.05,
                "steps": 2,
                "tags": ["test"],
            }
            | changes
        )
        for name in ("dog", "star", "cross")
    )


class CountingEngine(LocalEngine):
    """Counts what was learnt, and may stop in the middle, as a crash would."""

    def __init__(self, stop_after: int = 99) -> None:
        super().__init__(Compositions(None))
        self.stop_after = stop_after
        self.learnt: list[str] = []

    def run(self, work: Any) -> Iterator[Any]:
        for number, result in enumerate(super().run(work)):
            if number == self.stop_after:
                raise KeyboardInterrupt
            self.learnt.append(result.subject.name)
            yield result


def learn(
    text: str, out: Path, registry: Registry, folder: Path, **settings: Any
) -> tuple[BatchReport, list[str]]:
    engine = settings.pop("engine", None) or CountingEngine()
    report = run_learning(
        text, out, registry, engine=engine, base=str(folder), device="cpu", **settings
    )
    return report, engine.learnt


def test_each_line_becomes_a_version_and_each_chunk_a_commit(
    tiny_pipeline_folder: Path, photos: Path, registry: Registry, tmp_path: Path
) -> None:
    text = lines(photos, keep_scores=True)
    report, learnt = learn(text, tmp_path / "out", registry, tiny_pipeline_folder, push_size=2)
    assert report.succeeded
    assert (report.total, report.made) == (3, 3)
    assert learnt == ["alice/dog", "alice/star", "alice/cross"]
    concept = registry.get("alice/star")
    assert (concept.version, concept.scope, concept.class_noun) == (1, "subject", "star")
    assert concept.tags == ("test",)
    assert len(registry.resolve("alice/star*0.5").parts[0].mask) == round(concept.neuron_count / 2)
    assert concept.provenance is not None
    assert concept.provenance.method == "first-order"
    segments = list((tmp_path / "registry" / "log").iterdir())
    assert len(segments) == 2


def test_a_line_says_at_what_size_and_in_which_projections_it_is_learnt(
    tiny_pipeline_folder: Path, photos: Path, registry: Registry, tmp_path: Path
) -> None:
    text = lines(photos, size=24, projections="v").splitlines()[0]
    report, _ = learn(text, tmp_path / "out", registry, tiny_pipeline_folder)
    assert report.succeeded
    mask = registry.pull("alice/dog")
    assert {layer.kind for layer in mask.table if mask.count(layer.name)} == {"v"}
    provenance = registry.get("alice/dog").provenance
    assert provenance is not None
    assert provenance.parameters["size"] == 24


def test_interrupted_run_learns_and_pushes_nothing_twice(
    tiny_pipeline_folder: Path, photos: Path, registry: Registry, tmp_path: Path
) -> None:
    arguments = (lines(photos), tmp_path / "out", registry, tiny_pipeline_folder)
    with pytest.raises(KeyboardInterrupt):
        learn(*arguments, engine=CountingEngine(stop_after=2), push_size=1)
    assert registry.get("alice/dog").version == 1
    assert not registry.get("alice/dog").ranked
    report, learnt = learn(*arguments, push_size=2)
    assert learnt == ["alice/cross"]
    assert (report.made, report.kept) == (1, 2)
    assert learn(*arguments)[1] == []
    for name in ("dog", "star", "cross"):
        assert registry.get(f"alice/{name}").version == 1


def test_a_run_started_again_tells_what_was_removed_and_pushes_the_rest(
    tiny_pipeline_folder: Path, photos: Path, registry: Registry, tmp_path: Path
) -> None:
    arguments = (lines(photos), tmp_path / "out", registry, tiny_pipeline_folder)
    with pytest.raises(KeyboardInterrupt):
        learn(*arguments, engine=CountingEngine(stop_after=2), push_size=1)
    registry.remove("alice/dog")
    report, _ = learn(*arguments)
    ((failure),) = report.failures
    assert failure.line == 1
    assert "alice/dog:1, which was removed since" in failure.reason
    assert [registry.get(f"alice/{name}").version for name in ("star", "cross")] == [1, 1]


def test_a_mask_that_was_damaged_meanwhile_is_learnt_again(
    tiny_pipeline_folder: Path, photos: Path, registry: Registry, tmp_path: Path
) -> None:
    arguments = (lines(photos), tmp_path / "out", registry, tiny_pipeline_folder)
    learn(*arguments)
    files = sorted((tmp_path / "out/masks").iterdir())
    sound = [load_file(file) for file in files]
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:200])
    report, _ = learn(*arguments)
    assert (report.made, report.kept, report.succeeded) == (2, 1, True)
    assert [load_file(file) for file in files] == sound
    assert [registry.get(f"alice/{name}").version for name in ("dog", "star")] == [1, 1]


def test_a_subject_that_fails_does_not_stop_the_others(
    tiny_pipeline_folder: Path, photos: Path, registry: Registry, tmp_path: Path
) -> None:
    for file in (photos / "star").iterdir():
        file.unlink()
    report, _ = learn(lines(photos), tmp_path / "out", registry, tiny_pipeline_folder)
    assert report.made == 2
    ((failure),) = report.failures
    assert failure.line == 2
    assert "star" in failure.reason
    assert registry.get("alice/cross").version == 1


def test_output_of_another_run_is_a_conflict(
    tiny_pipeline_folder: Path, photos: Path, registry: Registry, tmp_path: Path
) -> None:
    first = lines(photos).splitlines()[0]
    learn(first, tmp_path / "out", registry, tiny_pipeline_folder)
    with pytest.raises(ConflictError):
        learn(lines(photos), tmp_path / "out", registry, tiny_pipeline_folder)


SCHEMA = Path(__file__).parents[2] / "schema"
GOOD = {"name": "alice/dog", "images": "photos", "token": "sks", "class_noun": "dog"}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "alice/dog:3"},
        {"name": 3},
        {"images": []},
        {"images": 3},
        {"token": " "},
        {"method": "magic"},
        {"scope": "everywhere"},
        {"density": 0},
        {"density": 0.1, "tau": 0.1},
        {"steps": 0},
        {"seed": -1},
        {"tags": "dog"},
        {"keep_scores": 1},
        {"size": 20},
        {"size": 1.5},
        {"projections": "q"},
        {"colour": "red"},
    ],
)
def test_bad_subject_line_is_reported_before_anything_is_learnt(
    change: dict[str, Any], registry: Registry, tmp_path: Path
) -> None:
    assert not validator().is_valid(GOOD | change)
    text = json.dumps(GOOD) + "\n" + json.dumps(GOOD | change)
    subjects, bad = parse_subjects(text)
    assert [subject.line for subject in subjects] == [1]
    assert [line.line for line in bad] == [2]
    with pytest.raises(BadJobsError):
        run_learning(text, tmp_path / "out", registry, engine=CountingEngine(), base="demo")


def validator() -> Any:
    schema = json.loads((SCHEMA / "batch-subject.schema.json").read_text())
    return jsonschema.Draft202012Validator(schema)


def test_schema_and_parser_agree_on_the_examples() -> None:
    examples = (SCHEMA / "examples" / "batch-subjects.jsonl").read_text()
    subjects, bad = parse_subjects(examples)
    assert (len(subjects), bad) == (3, [])
    for line in examples.splitlines():
        validator().validate(json.loads(line))


@pytest.mark.parametrize("missing", ["class_noun", "images", "name"])
def test_subject_line_needs_each_of_these(missing: str) -> None:
    content = {name: value for name, value in GOOD.items() if name != missing}
    subjects, bad = parse_subjects(json.dumps(content))
    assert subjects == []
    assert f"no {missing}" in bad[0].reason

"""Batch runs: pinned refs, resume, failures that stay alone, the same pictures every time."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cones_registry.base_model import BaseModel, GenerationDefaults
from cones_registry.batch import (
    BadJobsError,
    BatchReport,
    Compositions,
    LocalEngine,
    Progress,
    run_batch,
)
from cones_registry.batch.engine import Task
from cones_registry.batch.plan import Chosen
from cones_registry.errors import (
    BaseModelMismatchError,
    ConflictError,
    CorruptDataError,
    LimitExceededError,
    UsageError,
)
from cones_registry.generation import Generator, Request, read_recipe
from cones_registry.mask import ConceptMask
from cones_registry.record import Provenance
from cones_registry.registry import Registry
from cones_registry.registry.mask_files import MaskFiles
from cones_registry.store import Store, open_store

MakeMask = Callable[..., ConceptMask]


@pytest.fixture
def registry(tiny_base: BaseModel, random_mask: MakeMask, tmp_path: Path) -> Iterator[Registry]:
    table = tiny_base.layer_table
    with Registry.create(tmp_path / "registry", cache=tmp_path / "cache") as registry:
        for seed, (name, token) in enumerate([("dog", "sks"), ("star", "V1")]):
            registry.push(
                f"alice/{name}",
                random_mask(table, seed=seed, density=0.15),
                base=tiny_base,
                scope="subject",
                token=token,
                class_noun=name,
                provenance=Provenance(method="gates", parameters={"steps": 3}),
            )
        registry.push(
            "alice/style", random_mask(table, seed=9, density=0.1), base=tiny_base, scope="prompt"
        )
        ranked = random_mask(table, seed=5, density=0.2)
        ranks = (np.arange(len(ranked)) % 16).astype(np.uint8)
        registry.push("alice/ink", ranked, base=tiny_base, scores=ranks, scope="prompt")
        registry.alias("alice/dog", "prod")
        yield registry


JOBS = [
    {"prompt": "a sks dog", "concepts": ["alice/dog:prod"], "seed": 1, "count": 3, "steps": 2},
    {"prompt": "a dog", "seed": 1, "steps": 2},
    {
        "prompt": "a sks dog and V1 star",
        "concepts": ["alice/dog:prod", "alice/star", "alice/style"],
        "steps": 2,
        "negative_prompt": "blue",
    },
    {"prompt": "the red circle", "steps": 1, "guidance": 1, "scheduler": "euler", "size": [24, 16]},
]


def lines(jobs: list[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(job) for job in jobs)


def run(
    folder: Path, registry: Registry, out: Any, jobs: Any = JOBS, **settings: Any
) -> BatchReport:
    compositions = Compositions(settings.pop("source", registry))
    engine = settings.pop("engine", None) or LocalEngine(compositions)
    return run_batch(
        jobs if isinstance(jobs, str) else lines(jobs),
        out,
        engine=engine,
        base=str(folder),
        compositions=compositions,
        device="cpu",
        **({"batch_size": 2} | settings),
    )


def count_fetches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Digests of the mask files that are read from here on."""
    fetched: list[str] = []
    read = MaskFiles.get

    def counted(self: MaskFiles, digest: str) -> bytes:
        fetched.append(digest)
        return read(self, digest)

    monkeypatch.setattr(MaskFiles, "get", counted)
    return fetched


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "pictures").iterdir()}


def test_every_picture_is_made_with_its_recipe_and_row(
    tiny_pipeline_folder: Path, tiny_base: BaseModel, registry: Registry, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    report = run(tiny_pipeline_folder, registry, tmp_path / "out", on_progress=seen.append)
    assert report.succeeded
    assert (report.total, report.made, report.kept) == (6, 6, 0)
    assert [progress.done for progress in seen] == [0, 2, 4, 5, 6]
    made = files(tmp_path / "out")
    assert sorted(made) == [
        "000001-001.png", "000001-002.png", "000001-003.png",
        "000002-001.png", "000003-001.png", "000004-001.png",
    ]  # fmt: skip
    recipe = read_recipe(made["000001-002.png"])
    concept = registry.get("alice/dog")
    assert recipe["seed"] == 2
    assert recipe["base"] == tiny_base.fingerprint
    assert recipe["concepts"][0]["ref"] == "alice/dog:1"
    assert recipe["concepts"][0]["blob_digest"] == concept.blob_digest
    index = pq.read_table(io.BytesIO((tmp_path / "out" / "index.parquet").read_bytes())).to_pylist()
    assert [row["status"] for row in index] == ["made"] * 6
    assert index[4]["refs"] == ["alice/dog:1", "alice/star:1", "alice/style:1"]
    assert (index[5]["width"], index[5]["height"], index[5]["scheduler"]) == (24, 16, "euler")
    report_file = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report_file["succeeded"] is True


def test_recipe_is_enough_to_draw_the_picture_again(
    tiny_pipeline_folder: Path, tiny_base: BaseModel, registry: Registry, tmp_path: Path
) -> None:
    run(tiny_pipeline_folder, registry, tmp_path / "out", [JOBS[2]])
    file = tmp_path / "out" / "pictures" / "000001-001.png"
    recipe = read_recipe(file)
    composition = registry.resolve(*(concept["ref"] for concept in recipe["concepts"]))
    assert composition.digest == recipe["composition"]
    request = Request(
        recipe["prompt"],
        composition=composition,
        seed=recipe["seed"],
        negative_prompt=recipe["negative_prompt"],
    )
    (image,) = Generator(tiny_base).generate(
        [request], steps=recipe["steps"], guidance_scale=recipe["guidance"]
    )
    with Image.open(file) as picture:
        assert picture.tobytes() == image.tobytes()


def test_a_share_of_a_concept_is_what_resolving_it_gives_on_the_branches_asked_for(
    tiny_pipeline_folder: Path, tiny_base: BaseModel, registry: Registry, tmp_path: Path
) -> None:
    job = {"prompt": "a dog", "concepts": ["alice/ink*0.5"], "steps": 2, "guidance": 4}
    jobs = [job, {**job, "mask_unconditional": False}, {**job, "concepts": ["alice/ink"]}]
    assert run(tiny_pipeline_folder, registry, tmp_path / "out", jobs, batch_size=1).succeeded
    made = files(tmp_path / "out")
    assert len(set(made.values())) == 3
    share = registry.resolve("alice/ink*0.5")
    for name, masked in (("000001-001.png", True), ("000002-001.png", False)):
        recipe = read_recipe(made[name])
        assert (recipe["composition"], recipe["mask_unconditional"]) == (share.digest, masked)
        assert [concept["ref"] for concept in recipe["concepts"]] == ["alice/ink:1*0.5"]
        (image,) = Generator(tiny_base).generate(
            [Request("a dog", composition=share)],
            steps=2,
            guidance_scale=4,
            mask_unconditional=masked,
        )
        with Image.open(io.BytesIO(made[name])) as picture:
            assert picture.tobytes() == image.tobytes()
    assert list(json.loads((tmp_path / "out" / "run.json").read_text())["pins"]) == ["alice/ink"]


class Interrupted(Exception):
    pass


class StoppingEngine(LocalEngine):
    """Stops in the middle of a run, as a crash would."""

    def __init__(self, registry: Registry, after: int) -> None:
        super().__init__(Compositions(registry))
        self.after = after
        self.drawn: list[str] = []

    def run(self, work: Any) -> Iterator[Any]:
        for number, outcomes in enumerate(super().run(work)):
            if number == self.after:
                yield outcomes[:1]
                raise Interrupted
            self.drawn += [outcome.picture.name for outcome in outcomes]
            yield outcomes


def test_interrupted_run_makes_only_what_is_missing_and_the_same_bytes(
    tiny_pipeline_folder: Path, registry: Registry, tmp_path: Path
) -> None:
    run(tiny_pipeline_folder, registry, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tiny_pipeline_folder, registry, tmp_path / "out", engine=StoppingEngine(registry, 1))
    before = {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "pictures").iterdir()
    }
    assert len(before) == 3
    assert not (tmp_path / "out" / "report.json").exists()
    again = StoppingEngine(registry, 99)
    report = run(tiny_pipeline_folder, registry, tmp_path / "out", engine=again)
    assert (report.made, report.kept) == (3, 3)
    assert set(again.drawn).isdisjoint(before)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    for name, time in before.items():
        assert (tmp_path / "out" / "pictures" / name).stat().st_mtime_ns == time
    assert (tmp_path / "out" / "index.parquet").read_bytes() == (
        tmp_path / "whole" / "index.parquet"
    ).read_bytes()
    report = run(tiny_pipeline_folder, registry, tmp_path / "out")
    assert (report.made, report.kept) == (0, 6)


def test_alias_that_moves_in_between_changes_nothing_in_the_run(
    tiny_pipeline_folder: Path,
    tiny_base: BaseModel,
    registry: Registry,
    random_mask: MakeMask,
    tmp_path: Path,
) -> None:
    run(tiny_pipeline_folder, registry, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tiny_pipeline_folder, registry, tmp_path / "out", engine=StoppingEngine(registry, 0))
    registry.push(
        "alice/dog",
        random_mask(tiny_base.layer_table, seed=77),
        base=tiny_base,
        scope="subject",
        token="sks",
        class_noun="dog",
    )
    registry.alias("alice/dog:2", "prod")
    run(tiny_pipeline_folder, registry, tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    run(tiny_pipeline_folder, registry, tmp_path / "new")
    assert files(tmp_path / "new") != files(tmp_path / "whole")


NAMED = [
    {"prompt": "<alice/dog:prod> and <bob/dog>", "seed": 1, "steps": 2},
    {"prompt": "a sks dog and V1 star", "concepts": ["alice/dog:prod", "alice/star"], "steps": 2},
    {"prompt": "a <alice/dog:prod> and V1 star", "concepts": ["alice/star"], "steps": 2},
    {"prompt": "a <alice/style> dog <3", "negative_prompt": "<bob/dog>", "steps": 2},
]


def test_lines_name_concepts_and_an_alias_that_moves_changes_nothing(
    tiny_pipeline_folder: Path,
    tiny_base: BaseModel,
    registry: Registry,
    random_mask: MakeMask,
    tmp_path: Path,
) -> None:
    table, words = tiny_base.layer_table, {"token": "sks", "class_noun": "dog"}
    mask = random_mask(table, seed=4, density=0.1)
    registry.push("bob/dog", mask, base=tiny_base, scope="subject", **words)
    run(tiny_pipeline_folder, registry, tmp_path / "whole", NAMED)
    with pytest.raises(Interrupted):
        engine = StoppingEngine(registry, 0)
        run(tiny_pipeline_folder, registry, tmp_path / "out", NAMED, engine=engine)
    other = random_mask(table, seed=77, density=0.1)
    registry.push("alice/dog", other, base=tiny_base, scope="subject", **words)
    registry.alias("alice/dog:2", "prod")
    registry.push("local/3", other, base=tiny_base, scope="prompt")
    run(tiny_pipeline_folder, registry, tmp_path / "out", NAMED)
    assert files(tmp_path / "out") == files(tmp_path / "whole")

    index = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    assert [row["refs"] for row in index] == [
        ["alice/dog:1", "bob/dog:1"],
        ["alice/dog:1", "alice/star:1"],
        ["alice/star:1", "alice/dog:1"],
        ["alice/style:1", "bob/dog:1"],
    ]
    assert index[0]["prompt"] == "<alice/dog:prod> and <bob/dog>"
    pictures = sorted((tmp_path / "out" / "pictures").iterdir())
    recipe = read_recipe(pictures[0])
    assert recipe["read"]["prompt"] == "sks dog and sks dog"
    assert recipe["read"]["exact_prompt"] == "<alice/dog:1> and <bob/dog:1>"
    # Named or given with its words, it is the same picture.
    second, third = (np.asarray(Image.open(picture)) for picture in pictures[1:3])
    assert np.array_equal(second, third)


def test_pictures_of_named_concepts_are_kept_until_their_alias_moves(
    tiny_pipeline_folder: Path,
    tiny_base: BaseModel,
    registry: Registry,
    random_mask: MakeMask,
    tmp_path: Path,
) -> None:
    table, words = tiny_base.layer_table, {"token": "sks", "class_noun": "dog"}
    mask = random_mask(table, seed=4, density=0.1)
    registry.push("bob/dog", mask, base=tiny_base, scope="subject", **words)
    out = tmp_path / "out"
    run(tiny_pipeline_folder, registry, out, NAMED)
    assert run(tiny_pipeline_folder, registry, out, NAMED).kept == 4
    (out / "run.json").unlink()  # the next run looks aliases up anew
    assert run(tiny_pipeline_folder, registry, out, NAMED).kept == 4

    # A new version with the same mask is another version: its words may be others.
    registry.push("alice/dog", registry.pull("alice/dog:1"), base=tiny_base, scope="subject",
                  token="V2", class_noun="dog")  # fmt: skip
    registry.alias("alice/dog:2", "prod")
    (out / "run.json").unlink()
    only_named = [NAMED[0], NAMED[3]]
    report = run(tiny_pipeline_folder, registry, tmp_path / "other", only_named)
    assert (report.made, report.kept) == (2, 0)
    (tmp_path / "other" / "run.json").unlink()
    registry.alias("alice/dog:1", "prod")
    report = run(tiny_pipeline_folder, registry, tmp_path / "other", only_named)
    assert (report.made, report.kept) == (1, 1)


def test_lines_whose_names_are_none_are_bad_lines(
    tiny_pipeline_folder: Path, registry: Registry, tmp_path: Path
) -> None:
    jobs = [
        {"prompt": "a <alice/cat>"},
        {"prompt": "a <alice/dog"},
        {"prompt": "a dog", "negative_prompt": "<alice/style>"},
        {"prompt": "a <alice/dog*0.5>"},
        {"prompt": "<lora:x:1> i <3 dogs"},
    ]
    with pytest.raises(BadJobsError) as caught:
        run(tiny_pipeline_folder, registry, tmp_path / "out", jobs)
    assert [line.line for line in caught.value.lines] == [1, 2, 3, 4]
    assert "<alice/cat> at column 3 of the prompt" in str(caught.value)
    assert "'<alice/dog' at column 3 of the prompt has no '>'" in str(caught.value)


def test_every_bad_line_is_reported_before_anything_is_written(
    tiny_pipeline_folder: Path,
    tiny_base: BaseModel,
    registry: Registry,
    random_mask: MakeMask,
    tmp_path: Path,
) -> None:
    jobs = "\n".join(
        [
            lines(JOBS[:1]),
            '{"prompt": 3}',
            '{"prompt": "a", "concepts": ["alice/cat"]}',
            '{"prompt": "a dog", "concepts": ["alice/dog"]}',
            '{"prompt": "a sks dog", "concepts": ["alice/dog*0.5"]}',
            '{"prompt": "a sks dog", "concepts": ["alice/dog", "alice/hound"]}',
            '{"prompt": "a dog", "concepts": ["alice/ink", "alice/ink:1*0.5"]}',
            '{"prompt": "a \\ud800 circle"}',
        ]
    )
    registry.push(
        "alice/hound",
        random_mask(tiny_base.layer_table, seed=3, density=0.15),
        base=tiny_base,
        scope="subject",
        token="sks",
        class_noun="dog",
    )
    with pytest.raises(BadJobsError) as caught:
        run(tiny_pipeline_folder, registry, tmp_path / "out", jobs)
    assert [line.line for line in caught.value.lines] == [2, 3, 4, 5, 6, 7, 8]
    assert "alice/cat" in str(caught.value)
    assert "does not name 'alice/dog' by its token 'sks'" in str(caught.value)
    assert "alice/dog:1 keeps no scores" in str(caught.value)
    assert "both bind the token 'sks'" in str(caught.value)
    assert "with the weights 1 and 0.5" in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    report = run(tiny_pipeline_folder, registry, tmp_path / "out", jobs, keep_going=True)
    assert not report.succeeded
    assert report.made == 3
    assert [(each.line, each.number) for each in report.failures] == [
        (2, None), (3, None), (4, None), (5, None), (6, None), (7, None), (8, None),
    ]  # fmt: skip


def test_a_picture_that_fails_does_not_stop_the_others(
    tiny_pipeline_folder: Path, registry: Registry, tmp_path: Path
) -> None:
    # The token stands past the 24 rows the text encoder reads: only the worker can know.
    late = {"prompt": "a " * 30 + "sks dog", "concepts": ["alice/dog"], "steps": 2}
    report = run(tiny_pipeline_folder, registry, tmp_path / "out", [JOBS[1], late, JOBS[2]])
    assert (report.total, report.made) == (3, 2)
    ((failure),) = report.failures
    assert (failure.line, failure.number) == (2, 1)
    assert "reads the first 24 tokens" in failure.reason
    index = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    assert [row["status"] for row in index] == ["made", "failed", "made"]


def test_output_of_another_run_is_a_conflict(
    tiny_pipeline_folder: Path, registry: Registry, tmp_path: Path
) -> None:
    run(tiny_pipeline_folder, registry, tmp_path / "out", JOBS[1:2])
    for jobs, changes in [
        (JOBS[:1], {}),
        (JOBS[1:2], {"batch_size": 3}),
        (JOBS[1:2], {"format": "webp"}),
        (JOBS[1:2], {"dtype": "bfloat16"}),
    ]:
        with pytest.raises(ConflictError):
            run(tiny_pipeline_folder, registry, tmp_path / "out", jobs, **changes)
    assert run(tiny_pipeline_folder, registry, tmp_path / "out", JOBS[1:2], batch_size=None).kept


def test_damaged_manifest_is_corrupt_data(
    tiny_pipeline_folder: Path, registry: Registry, tmp_path: Path
) -> None:
    out = open_store(tmp_path / "out")
    out.put_new("run.json", b'{"format": "cones run 1", "jobs": 3}')
    with pytest.raises(CorruptDataError, match="another --out"):
        run(tiny_pipeline_folder, registry, tmp_path / "out")


def test_concept_of_another_base_stops_the_run_before_it_begins(
    tiny_pipeline_folder: Path, tiny_base: BaseModel, registry: Registry, tmp_path: Path
) -> None:
    mask = ConceptMask.empty(tiny_base.layer_table)
    registry.push("alice/foreign", mask, base="sha256:" + "0" * 64, scope="prompt")
    jobs = [{"prompt": "a", "concepts": ["alice/foreign"]}]
    with pytest.raises(BaseModelMismatchError):
        run(tiny_pipeline_folder, registry, tmp_path / "out", jobs)
    assert not (tmp_path / "out" / "run.json").exists()


def test_output_may_be_any_store(
    tiny_pipeline_folder: Path, registry: Registry, tmp_path: Path
) -> None:
    store: Store = open_store("memory://batch-out")
    report = run(tiny_pipeline_folder, registry, store, JOBS[1:3], format="webp")
    assert report.succeeded
    keys = [entry.key for entry in store.list("")]
    assert keys == [
        "index.parquet", "pictures/000001-001.webp", "pictures/000002-001.webp",
        "report.json", "run.json",
    ]  # fmt: skip
    assert read_recipe(store.get("pictures/000002-001.webp"))["seed"] == 0


def test_two_workers_draw_what_one_draws(
    tiny_pipeline_folder: Path, registry: Registry, tmp_path: Path
) -> None:
    run(tiny_pipeline_folder, registry, tmp_path / "one")
    two = LocalEngine(Compositions(registry), devices=["cpu", "cpu"])
    run(tiny_pipeline_folder, registry, tmp_path / "two", engine=two)
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_of_two_processes_on_one_output_each_accepts_the_pictures_of_the_other(
    tiny_pipeline_folder: Path, registry: Registry, tmp_path: Path
) -> None:
    run(tiny_pipeline_folder, registry, tmp_path / "first")
    drawn = files(tmp_path / "first")

    class Beside(LocalEngine):
        """Another process writes each picture while this one draws it."""

        out: Store
        change = b""

        def run(self, work: Any) -> Iterator[Any]:
            for outcomes in super().run(work):
                for outcome in outcomes:
                    name = f"{outcome.picture.name}.png"
                    self.out.put_new(f"pictures/{name}", drawn[name] + self.change)
                yield outcomes

    for change in (b"", b"other"):
        engine = Beside(Compositions(registry))
        engine.out, engine.change = open_store(tmp_path / f"out{len(change)}"), change
        if not change:
            run(tiny_pipeline_folder, registry, engine.out, engine=engine)
            assert files(tmp_path / "out0") == drawn
        else:
            with pytest.raises(ConflictError, match="one process at a time"):
                run(tiny_pipeline_folder, registry, engine.out, engine=engine)


def test_lines_are_checked_without_fetching_a_mask_unless_density_decides(
    tiny_base: BaseModel,
    registry: Registry,
    random_mask: MakeMask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in (1, 2):
        registry.push(
            f"alice/dense{seed}",
            random_mask(tiny_base.layer_table, seed=seed, density=0.4),
            base=tiny_base,
            scope="prompt",
        )
    registry.push(
        "alice/foreign",
        ConceptMask.empty(tiny_base.layer_table),
        base="sha256:" + "0" * 64,
        scope="prompt",
    )
    fetched = count_fetches(monkeypatch)
    compositions = Compositions(registry)

    def check(*refs: str) -> None:
        compositions.check(tuple(Chosen(compositions.pin(ref)) for ref in refs))

    check("alice/dog", "alice/star", "alice/style")
    with pytest.raises(BaseModelMismatchError):
        check("alice/dog", "alice/foreign")
    assert fetched == []
    with pytest.raises(LimitExceededError):
        check("alice/dense1", "alice/dense2")
    dense = [registry.get(f"alice/dense{seed}").blob_digest for seed in (1, 2)]
    assert sorted(fetched) == sorted(dense)


def test_continuing_with_other_libraries_is_said(
    tiny_pipeline_folder: Path,
    registry: Registry,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run(tiny_pipeline_folder, registry, tmp_path / "out", JOBS[1:2])
    assert caplog.text == ""
    manifest = tmp_path / "out" / "run.json"
    manifest.write_text(manifest.read_text().replace('"torch": "', '"torch": "0.'))
    run(tiny_pipeline_folder, registry, tmp_path / "out", JOBS[1:2])
    assert "may differ in their last bits" in caplog.text


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"format": "gif"}])
def test_wrong_settings_are_refused(
    tiny_pipeline_folder: Path, registry: Registry, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        run(tiny_pipeline_folder, registry, tmp_path / "out", **wrong)


def test_masks_are_loaded_once_and_fetched_ahead(
    tiny_pipeline_folder: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = count_fetches(monkeypatch)
    ahead: list[int] = []
    real = Compositions.prefetch

    def counted(self: Compositions, chunk: Any) -> Any:
        ahead.append(chunk.number)
        return real(self, chunk)

    monkeypatch.setattr(Compositions, "prefetch", counted)
    run(tiny_pipeline_folder, registry, tmp_path / "out")
    names = ("alice/dog", "alice/star", "alice/style")
    assert sorted(fetched) == sorted(registry.get(name).blob_digest for name in names)
    assert ahead == [1, 2, 3]


def test_outcomes_are_only_of_the_pictures_that_are_wanted(
    tiny_pipeline_folder: Path, registry: Registry
) -> None:
    from cones_registry.batch.engine import EngineSettings
    from cones_registry.batch.job import parse_jobs
    from cones_registry.batch.plan import make_chunks

    jobs, _ = parse_jobs('{"prompt": "a dog", "count": 2, "steps": 1}')
    (chunk,) = make_chunks(jobs, {}, 4, GenerationDefaults())
    engine = LocalEngine(Compositions(None))
    engine.start(EngineSettings(str(tiny_pipeline_folder), None, "cpu"))
    ((outcome,),) = engine.run([Task(chunk, frozenset({"000001-002"}))])
    engine.stop()
    assert outcome.picture.seed == 1

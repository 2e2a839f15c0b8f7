"""Extractor: three methods, two scopes, one result; on a tiny model with random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from cones_registry.errors import LimitExceededError, UsageError
from cones_registry.extraction import (
    METHODS,
    Companion,
    Cones,
    DivergedError,
    Extraction,
    ExtractionSettings,
    Extractor,
    Gates,
    held_out_losses,
)
from cones_registry.extraction.batches import Batches
from cones_registry.extraction.materials import Materials
from cones_registry.extraction.noise import NoiseSchedule
from cones_registry.record import Provenance
from cones_registry.seed import MAX_SEED

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel
    from cones_registry.mask import ConceptMask


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three references, two with side-cars, and companions to join the first with."""
    folder = tmp_path / "dog"
    (folder / "companions").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(3):
        pixels = generator.integers(0, 255, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "0.txt").write_text("at left a {}|on wall")
    (folder / "1.txt").write_text("a {}|on wall")
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (16, 16), colour).save(folder / "companions" / f"{number}.png")
        (folder / "companions" / f"{number}.txt").write_text(f"at right a {colour} star|on wall")
    return folder


@pytest.fixture
def extract(tiny_base: "BaseModel", pictures: Path, tmp_path: Path) -> Callable[..., Extraction]:
    """``extract(method=…, …)`` with few steps."""

    def run(**options: Any) -> Extraction:
        extractor = Extractor(tiny_base, cache_folder=tmp_path / "cache")
        few = ExtractionSettings(prior_count=4, prior_steps=2)
        method = options.pop("method", Gates(steps=12, batch_size=4, learning_rate=0.2))
        arguments = {"token": "sks", "class_noun": "dog", "settings": few, "progress": None}
        return extractor.extract(pictures, method=method, **(arguments | options))

    return run


@pytest.mark.parametrize("scope", ["subject", "prompt"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_gives_a_mask_of_the_density_asked_for(
    extract: Callable[..., Extraction], tiny_base: "BaseModel", method: str, scope: str
) -> None:
    found = extract(method=method, scope=scope, density=0.05, steps=4)
    assert found.scope == scope
    assert found.mask.table == tiny_base.layer_table
    assert found.mask.density <= 0.05 + 1e-4
    if method != "gates":  # four steps are too few for gates to close
        assert found.mask.density == pytest.approx(0.05, abs=1e-3)


def test_gates_land_at_their_target(extract: Callable[..., Extraction]) -> None:
    found = extract(method=Gates(steps=60, batch_size=4), density=0.08)
    assert found.density == pytest.approx(0.08, abs=0.002)
    assert max(entry["density"] for entry in found.history) <= 0.08 + 1e-3


def test_a_warm_start_shuts_from_the_first_step_on(extract: Callable[..., Extraction]) -> None:
    cold, warm = (
        extract(
            method=Gates(steps=1, batch_size=4, learning_rate=0.01, warm_start=batches),
            density=0.08,
        )
        for batches in (0, 4)
    )
    assert cold.history[0]["density"] < 0.01
    assert 0.04 < warm.history[0]["density"] <= 0.08 + 1e-3


@pytest.mark.parametrize(("rows", "counts"), [("token", {1}), ("phrase", {2})])
def test_the_mask_is_learnt_at_the_rows_that_were_chosen(
    tiny_base: "BaseModel", pictures: Path, tmp_path: Path, rows: str, counts: set[int]
) -> None:
    assert {
        int(each.sum()) for each in rows_learnt_at(tiny_base, pictures, tmp_path, rows)
    } == counts


def test_rows_after_the_prompt_may_belong_to_the_subject(
    tiny_base: "BaseModel", pictures: Path, tmp_path: Path
) -> None:
    found = rows_learnt_at(tiny_base, pictures, tmp_path, "padding")
    phrase = rows_learnt_at(tiny_base, pictures, tmp_path, "phrase")
    assert found[:, -1].all()
    assert (found >= phrase).all()
    assert not found[:, 0].any()


def rows_learnt_at(base: "BaseModel", pictures: Path, cache: Path, rows: str) -> torch.Tensor:
    """The subject's rows of every prompt that is learnt from, bool [P, T]."""
    settings = ExtractionSettings(rows=rows)  # type: ignore[arg-type]
    batches = Batches.gather(
        base,
        NoiseSchedule.of(base.pipeline.scheduler),
        [
            Materials.gather(
                base, pictures, token="sks", class_noun="dog", prompts=None, companions=None
            )
        ],
        settings=settings,
        weighed=settings.for_scope("subject"),
        batch_size=2,
        seed=0,
        cache_folder=cache,
    )
    return batches.subject.texts.rows


def test_a_mask_can_be_cut_to_a_lower_density(extract: Callable[..., Extraction]) -> None:
    found = extract(method="first-order", density=0.05, steps=2)
    cut = found.cut(0.01)
    assert cut.mask.density == pytest.approx(0.01, abs=1e-3)
    assert cut.mask & found.mask == cut.mask
    assert cut.provenance.parents == (found.mask.digest,)
    with pytest.raises(UsageError, match="cannot cut"):
        found.cut(0.5)


def test_tau_is_a_threshold_on_the_score(extract: Callable[..., Extraction]) -> None:
    found = extract(method="cones", tau=0.0, steps=2)
    assert found.scores is not None
    for name, score in found.scores.items():
        assert np.array_equal(found.mask.to_dense(name), score > 0)
    assert found.provenance.parameters["tau"] == 0.0


def test_equal_seeds_give_equal_masks_and_others_do_not(extract: Callable[..., Extraction]) -> None:
    first, second, other = (extract(seed=seed) for seed in (1, 1, 2))
    assert first.mask == second.mask
    assert first.history == second.history
    assert first.mask != other.mask


def test_the_base_model_is_left_as_it_was(
    extract: Callable[..., Extraction], tiny_base: "BaseModel"
) -> None:
    before = {k: v.clone() for k, v in tiny_base.denoiser.state_dict().items()}
    extract()
    after = tiny_base.denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad or p.grad is not None for p in tiny_base.denoiser.parameters())


def test_learning_lowers_the_loss_that_is_learnt(
    extract: Callable[..., Extraction], tiny_base: "BaseModel", pictures: Path
) -> None:
    found = extract(method=Gates(steps=80, batch_size=8), density=0.1)
    star = Companion(pictures / "companions" / "0.png", "at right a red star|on wall")
    losses = held_out_losses(
        tiny_base,
        found.mask,
        scope="subject",
        token="sks",
        class_noun="dog",
        own=pictures,
        class_pictures=[Companion(pictures / "1.png", "a dog|on wall")],
        other_pictures=[star],
    )
    assert losses.own is not None
    assert losses.own < 0.999
    assert (losses.class_, losses.other) == (1.0, 1.0)


def test_losses_of_an_empty_mask_are_one(
    tiny_base: "BaseModel", pictures: Path, random_mask: Callable[..., "ConceptMask"]
) -> None:
    names = {"token": "sks", "class_noun": "dog"}
    nothing = random_mask(tiny_base.layer_table, density=0.0)
    losses = held_out_losses(tiny_base, nothing, scope="prompt", own=pictures, draws=2, **names)
    assert losses.own == 1.0
    assert losses.class_ is None


def test_provenance_says_how_to_make_it_again(extract: Callable[..., Extraction]) -> None:
    found = extract(seed=5)
    made = found.provenance
    assert Provenance.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert (made.method, made.seed, made.prompt) == ("gates", 5, "at left a sks dog on wall")
    assert len(made.image_digests) == 3
    assert made.history == found.history
    assert made.versions["torch"]
    expected = {"steps": 12, "scope": "subject", "collage_examples": 2, "prior_examples": 0}
    assert {key: made.parameters[key] for key in expected} == expected
    assert made.parameters["captions"] == ["at left a {} on wall", "a {} on wall", None]


def test_class_pictures_are_drawn_once(
    extract: Callable[..., Extraction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cones_registry.extraction import prior

    first = extract(scope="prompt")
    (file,) = (tmp_path / "cache").iterdir()
    stamp = file.stat().st_mtime_ns
    monkeypatch.setattr(prior, "draw_latents", None)
    assert extract(scope="prompt").mask == first.mask
    assert file.stat().st_mtime_ns == stamp
    monkeypatch.undo()
    file.write_bytes(file.read_bytes()[:-1] + b"?")  # damaged: drawn again
    assert extract(scope="prompt").mask == first.mask


def test_progress_is_told_at_every_step(extract: Callable[..., Extraction]) -> None:
    steps: list[Any] = []
    extract(progress=steps.append)
    assert [(step.number, step.total) for step in steps] == [(n, 12) for n in range(1, 13)]
    assert all(step.loss > 0 and 0 <= step.density <= 1 for step in steps)


def test_a_bar_is_shown_on_a_terminal_alone(
    extract: Callable[..., Extraction],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    extract(progress="auto")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    extract(progress="auto")
    assert "density" in capsys.readouterr().err


def test_a_step_too_large_is_an_error_not_a_mask(extract: Callable[..., Extraction]) -> None:
    with pytest.raises(DivergedError, match="smaller step"):
        extract(method=Cones(steps=20, batch_size=2, rho=1e30, bounded=False))


def test_algorithm_1_lowers_its_loss_and_says_its_rho(extract: Callable[..., Extraction]) -> None:
    found = extract(method=Cones(steps=30, batch_size=8), density=0.01)
    assert found.provenance.parameters["rho"] > 0
    curve = [entry["loss"] for entry in found.history]
    assert np.mean(curve[-5:]) < np.mean(curve[:5])


def test_a_mask_above_the_limit_is_refused(extract: Callable[..., Extraction]) -> None:
    with pytest.raises(LimitExceededError, match="limit"):
        extract(method="first-order", steps=2, tau=0.0, max_density=0.01)


def test_a_density_above_the_limit_is_refused_before_learning(
    extract: Callable[..., Extraction],
) -> None:
    steps: list[object] = []
    with pytest.raises(LimitExceededError, match=r"above the limit of 0\.5"):
        extract(density=0.6, progress=steps.append)
    assert not steps


def test_a_warm_start_may_shut_every_weight(extract: Callable[..., Extraction]) -> None:
    found = extract(method="quick-gates", steps=1, density=1.0, max_density=1.0, seed=MAX_SEED)
    assert 0 < found.density <= 1


def test_the_record_of_a_mask_file_says_what_a_registry_keeps(
    extract: Callable[..., Extraction], tiny_base: "BaseModel"
) -> None:
    found = extract(method="first-order", steps=1, density=0.1)
    record = found.record(tiny_base.fingerprint, tags=["pet"], note="old")
    assert Provenance.from_json(record["provenance"]) == found.provenance
    del record["provenance"]
    assert record == {
        "base": tiny_base.fingerprint,
        "scope": "subject",
        "token": "sks",
        "class_noun": "dog",
        "tags": ["pet"],
        "note": "old",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": "snorf"}, "no single entry"),
        ({"class_noun": " "}, "no class noun"),
        ({"method": "magic"}, "unknown method"),
        ({"scope": "picture"}, "unknown scope"),
        ({"density": 0.0}, "density"),
        ({"density": 0.1, "tau": 0.1, "method": "cones"}, "density or a tau"),
        ({"tau": 0.1}, "no tau"),
        ({"tau": -1.0, "method": "cones"}, "tau"),
        ({"steps": 0}, "steps"),
        ({"density": 1e-8}, "is not one neuron. Ask for at least"),
        ({"seed": -1}, "seed=-1; expected a whole number 0"),
        ({"seed": 2**63}, "seed=9223372036854775808"),
        ({"prompts": ["a photo"]}, "no place for the subject"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(
    extract: Callable[..., Extraction], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        extract(**options)


def test_captions_must_leave_a_place_for_the_subject(
    extract: Callable[..., Extraction], pictures: Path
) -> None:
    (pictures / "2.txt").write_text("a dog on wall")
    with pytest.raises(UsageError, match=r"2\.png"):
        extract()


@pytest.mark.parametrize("caption", ["at right a sks dog|on wall", "a cat, sks.|on wall"])
def test_a_companion_may_not_name_the_token(
    extract: Callable[..., Extraction], pictures: Path, caption: str
) -> None:
    (pictures / "companions" / "0.txt").write_text(caption)
    with pytest.raises(UsageError, match="companion"):
        extract()


def test_settings_that_cannot_be_are_refused() -> None:
    for settings in (
        {"collage_share": 2.0},
        {"prior_weight": -1.0},
        {"prior_count": 0},
        {"rows": "all"},
    ):
        with pytest.raises(UsageError):
            ExtractionSettings(**settings)  # type: ignore[arg-type]


def test_without_a_token_one_is_taken_that_every_tokenizer_has(tiny_base: "BaseModel") -> None:
    from types import SimpleNamespace

    from cones_registry.extraction.conditioning import free_token

    assert free_token(tiny_base) == "sks"
    # Where no other is known, one that is taken serves too: names tell concepts apart.
    assert free_token(tiny_base, avoid=["SKS"]) == "sks"
    tokenizer = clip_tokenizer_of(["sks", "ohwx", "dog", "xqz", "zzz"])
    base: Any = SimpleNamespace(tokenizers=(tokenizer,), lock=tiny_base.lock)
    assert free_token(base, avoid=["sks"]) == "ohwx"
    assert free_token(base, avoid=["sks", "ohwx"]) == "zzz"
    two: Any = SimpleNamespace(tokenizers=(tokenizer, tiny_base.tokenizers[0]), lock=tiny_base.lock)
    assert free_token(two, avoid=["sks"]) == "sks"
    none: Any = SimpleNamespace(
        tokenizers=(clip_tokenizer_of(["dog"]), tokenizer), lock=tiny_base.lock
    )
    with pytest.raises(UsageError, match="no rare word in common"):
        free_token(none)


def clip_tokenizer_of(words: list[str]) -> Any:
    """A byte-pair tokenizer that has exactly these words whole."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = {piece: number for number, piece in enumerate(letters)}
    vocabulary |= {letter + "</w>": len(letters) + n for n, letter in enumerate(letters)}
    merges = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = ["".join(pieces[:2])]
            vocabulary.setdefault(pieces[0], len(vocabulary))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=24)


def test_an_extraction_is_pushed_with_all_that_belongs_to_it(
    extract: Callable[..., Extraction], tiny_base: "BaseModel", tmp_path: Path
) -> None:
    from cones_registry.registry import Registry

    extraction = extract(scope="subject", token=None)
    with Registry.create(tmp_path / "concepts", cache=tmp_path / "copies") as registry:
        concept = registry.push("alice/dog", extraction, tags=("pet",), note="mine")
        assert (concept.scope, concept.token, concept.class_noun) == ("subject", "sks", "dog")
        assert (concept.base, concept.tags) == (tiny_base.fingerprint, ("pet",))
        assert concept.provenance == extraction.provenance
        assert registry.pull("alice/dog") == extraction.mask
        other, same = registry.push_many(
            [("alice/cat", extraction, {"class_noun": "cat"}), {"ref": "a/b", "mask": extraction}]
        )
        assert (other.class_noun, same.class_noun) == ("cat", "dog")
        assert not concept.ranked
        assert registry.push("alice/dog", extraction, scores=extraction.scores).ranked

"""Extractor: pictures of one subject in, its concept neurons out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cones_registry.base_model.versions import library_versions
from cones_registry.digest import quote
from cones_registry.errors import LimitExceededError, UsageError
from cones_registry.extraction.batches import Batches
from cones_registry.extraction.conditioning import free_token, require_learnable
from cones_registry.extraction.cones import Cones
from cones_registry.extraction.extraction import Extraction
from cones_registry.extraction.first_order import FirstOrder
from cones_registry.extraction.gates import Gates, QuickGates
from cones_registry.extraction.images import Sources
from cones_registry.extraction.joint_tuning import tune
from cones_registry.extraction.loss import ConceptImplantingLoss
from cones_registry.extraction.materials import Companions, Materials
from cones_registry.extraction.memory import MemoryEstimate, estimate
from cones_registry.extraction.methods import Method
from cones_registry.extraction.noise import NoiseSchedule
from cones_registry.extraction.prior import default_cache_folder
from cones_registry.extraction.progress import Progress, reporting
from cones_registry.extraction.recomputing import can_recompute, recomputing
from cones_registry.extraction.settings import ExtractionSettings, check_seed
from cones_registry.extraction.subject_images import SubjectImages
from cones_registry.extraction.target import Target
from cones_registry.extraction.tuning import TuneSettings, Tuning
from cones_registry.extraction.weights import FlatWeights
from cones_registry.record import SCOPES, Provenance, Scope

if TYPE_CHECKING:
    from cones_registry.attention.composed import Composed
    from cones_registry.base_model import BaseModel

METHODS: Final[Mapping[str, type[Method]]] = {
    method.name: method for method in (Gates, QuickGates, Cones, FirstOrder)
}


class Extractor:
    """Finds concept neurons with one base model, which it never changes."""

    def __init__(self, base: BaseModel, *, cache_folder: str | Path | None = None) -> None:
        """cache_folder: where class pictures are kept; default: see ``default_cache_folder``.

        Raises UsageError for a base model that is no U-Net or not trained by denoising.
        """
        require_learnable(base)
        self.base = base
        self.schedule = NoiseSchedule.of(base.pipeline.scheduler)
        self.cache_folder = Path(cache_folder) if cache_folder else default_cache_folder()

    def extract(
        self,
        images: Sources,
        *,
        class_noun: str,
        token: str | None = None,
        avoid_tokens: Collection[str] = (),
        method: str | Method = "gates",
        scope: Scope = "subject",
        density: float | None = None,
        tau: float | None = None,
        steps: int | None = None,
        seed: int = 0,
        prompts: Sequence[str] | None = None,
        companions: Companions | None = None,
        settings: ExtractionSettings | None = None,
        max_density: float = 0.5,
        progress: Progress = "auto",
    ) -> Extraction:
        """Learn which K/V weights to shut so that "``token`` ``class_noun``" draws the subject.

        In prompts the concept goes by the name it is pushed under, so its token need not be known.

        images: a folder, files or PIL images of the subject; three to five are enough.
            ``dog1.txt`` beside ``dog1.png`` is its caption, with ``{}`` for the subject:
            "a {} on a beach", or "at left a {}|on white" (see ``Caption``).
        class_noun: what the subject is one of ("dog").
        token: a word that means nothing yet and is one entry of the tokenizer ("sks"); left out,
            one that the tokenizers know is taken.
        avoid_tokens: words not to take, such as those of concepts it is to be combined with.
        method: "gates", "quick-gates", "cones", "first-order", or a ``Method`` with
            hyper-parameters of its own.
        scope: "subject" or "prompt": at which rows of K and V the mask acts.
        density: share of neurons to shut; each method has its default. tau: threshold on the score
            instead (not for gates). steps: instead of the method's own.
        prompts: captions for pictures without one; each with ``{}``.
        companions: pictures of other things, or their folder; default: the subfolder
            "companions" of the folder of images, if there is one. With some, the subject is also
            learnt beside them, first and second in the prompt; without, it may be drawn only
            where it is named first.
        seed: 0 … 2**63 - 1.
        max_density: a mask above it is refused, and so is a density above it.
        progress: "auto" (a bar on a terminal), None, or a callback that is given each ``Step``.

        Deterministic by ``seed`` on one machine. Raises UsageError (token, captions, options),
        NotFoundError and CorruptDataError (pictures), LimitExceededError (size, density),
        DivergedError (the loss is no number).
        """
        settings = settings or ExtractionSettings()
        chosen = _method(method).with_steps(steps)
        target = _target(chosen, density, tau)
        target.require_members(self.base.layer_table)
        if target.density is not None and target.density > max_density:
            raise LimitExceededError(
                f"density={target.density} is above the limit of {max_density}. Ask for less, or "
                "raise max_density"
            )
        check_seed(seed)
        if scope not in SCOPES:
            raise UsageError(f"unknown scope {quote(scope)}. Expected one of {', '.join(SCOPES)}")
        estimate(self.base).require()
        token = token or free_token(self.base, avoid=avoid_tokens)
        materials = Materials.gather(
            self.base,
            images,
            token=token,
            class_noun=class_noun,
            prompts=prompts,
            companions=companions,
        )
        with (
            self.base.frozen(),
            reporting(progress, f"{chosen.name} {materials.name}") as on_step,
        ):
            loss = self._loss(materials, settings, scope, chosen.batch_size, seed)
            needed = estimate(self.base, loss)
            needed.require()
            with self._activations(settings.recompute, needed.recompute):
                learnt = chosen.learn(loss, target=target, on_step=on_step)
        if learnt.mask.density > max_density:
            raise LimitExceededError(
                f"the mask shuts {learnt.mask.density:.1%} of the neurons; the limit is "
                f"{max_density:.1%}. Raise tau, or ask for a density"
            )
        parameters: dict[str, Any] = {
            **chosen.to_json(),
            **asdict(settings),
            **asdict(loss.settings),
            **asdict(target),
            **loss.counts,
            **learnt.found,
            **materials.to_json(),
        }
        provenance = Provenance(
            method=chosen.name,
            seed=seed,
            parameters=parameters,
            image_digests=tuple(picture.digest for picture in materials.pictures),
            history=learnt.history,
            versions=library_versions(),
            prompt=materials.captions[0].text(materials.name),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return Extraction(
            learnt.mask,
            scope,
            token,
            materials.class_noun,
            provenance,
            learnt.history,
            learnt.scores,
            self.base.identity,
        )

    def memory(
        self,
        images: Sources,
        *,
        token: str | None = None,
        class_noun: str,
        method: str | Method = "gates",
        scope: Scope = "subject",
        prompts: Sequence[str] | None = None,
        companions: Companions | None = None,
        settings: ExtractionSettings | None = None,
    ) -> MemoryEstimate:
        """What memory ``extract`` would take with these arguments; nothing is learnt.

        Pictures and captions are encoded, and one batch is run without keeping anything.
        """
        chosen, settings = _method(method), settings or ExtractionSettings()
        token = token or free_token(self.base)
        materials = Materials.gather(
            self.base,
            images,
            token=token,
            class_noun=class_noun,
            prompts=prompts,
            companions=companions,
        )
        with self.base.frozen():
            loss = self._loss(materials, settings, scope, chosen.batch_size, 0)
            return estimate(self.base, loss)

    def tune(
        self,
        composition: Composed,
        images: Mapping[str, SubjectImages | Sources],
        steps: int | None = None,
        *,
        seed: int = 0,
        tuning: TuneSettings | None = None,
        settings: ExtractionSettings | None = None,
        progress: Progress = "auto",
    ) -> Tuning:
        """Learn what the members of a composition's masks are multiplied by, on all subjects.

        composition: what ``registry.resolve`` gave. images: ref, as in ``composition.refs`` ->
            pictures of that concept's subject, as ``extract`` takes them; ``SubjectImages`` where
            it has companions of its own, or no token is kept with it.
        steps: instead of that of ``tuning``.

        The members stay as they are; with scope ``subject`` each mask acts on its own rows still,
        so ``settings.rows`` cannot be another than its default.
        Deterministic by ``seed`` on one machine. Raises BaseModelMismatchError, UsageError
        (pictures for other concepts than the composition's), and what ``extract`` raises.
        """
        tuning = tuning or TuneSettings()
        if steps is not None:
            tuning = replace(tuning, steps=steps)
        check_seed(seed)
        title = f"tune {len(composition.members)} concepts"
        settings = settings or ExtractionSettings()
        with (
            self.base.frozen(),
            self._activations(settings.recompute),
            reporting(progress, title) as on_step,
        ):
            return tune(
                self.base,
                self.schedule,
                composition,
                images,
                tuning=tuning,
                settings=settings,
                seed=seed,
                cache_folder=self.cache_folder,
                on_step=on_step,
            )

    def _activations(
        self, chosen: bool | None, advised: bool = False
    ) -> AbstractContextManager[None]:
        """Activations are kept for the gradient, or computed again: as chosen, else as advised."""
        if not (advised if chosen is None else chosen):
            return nullcontext()
        if not can_recompute(self.base.denoiser):
            raise UsageError(
                f"recompute=True, but {type(self.base.denoiser).__name__} has no activation "
                "checkpointing in diffusers. Leave it out, or learn at a smaller size"
            )
        return recomputing(self.base.denoiser)

    def _loss(
        self,
        materials: Materials,
        settings: ExtractionSettings,
        scope: Scope,
        batch_size: int,
        seed: int,
    ) -> ConceptImplantingLoss:
        """Pictures and captions encoded, class pictures drawn if they count."""
        weighed = settings.for_scope(scope)
        batches = Batches.gather(
            self.base,
            self.schedule,
            [materials],
            settings=settings,
            weighed=weighed,
            batch_size=batch_size,
            seed=seed,
            cache_folder=self.cache_folder,
        )
        weights = FlatWeights(self.base, settings.projections)
        return ConceptImplantingLoss(self.base, weights, self.schedule, batches, weighed)


def _method(method: str | Method) -> Method:
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise UsageError(f"unknown method {quote(method)}. Expected one of {', '.join(METHODS)}")
    return METHODS[method].default()


def _target(method: Method, density: float | None, tau: float | None) -> Target:
    if tau is not None and not method.uses_tau:
        raise UsageError(f"method {method.name!r} has no tau. Give a density")
    if density is None and tau is None:
        density = method.default_density
    return Target(density, tau)

"""What surrounds the method: collages, class pictures, timesteps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from cones_registry.attention import ROW_CHOICES
from cones_registry.digest import quote
from cones_registry.errors import UsageError
from cones_registry.picture_size import check_side
from cones_registry.seed import MAX_SEED

if TYPE_CHECKING:
    from cones_registry.attention import RowChoice
    from cones_registry.record import Scope

Projections = Literal["kv", "k", "v"]
"""Which of a block's projections may have members."""
PROJECTIONS: Final[tuple[str, ...]] = get_args(Projections)


def check_seed(seed: int) -> int:
    """``seed`` if it is one, 0 … MAX_SEED; else UsageError."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed={quote(seed)}; expected a whole number 0 … {MAX_SEED}")
    return seed


@dataclass(frozen=True)
class LossSettings:
    """What the loss weighs.

    scope: "subject" (θ is learnt at the subject's rows) or "prompt" (at every row).
    collage_share: share of each batch in which the subject is in company, where collages exist.
    prior_weight: of the class pictures' loss; 0 leaves it out.
    towards_noise: 0 draws timesteps evenly, more draws more of them from the noisy end.
    """

    scope: str
    collage_share: float
    prior_weight: float
    towards_noise: float


@dataclass(frozen=True)
class ExtractionSettings:
    """Everything around the method.

    collage_share: share of each batch in which the subject stands beside a companion.
    collage_limit: collages made at most.
    prior_weight: weight of the class pictures; None: 1 for scope ``prompt``, 0 for ``subject``,
        where every row that is not the subject's is the base model's own.
    prior_count: class pictures. prior_steps, guidance_scale: how they are drawn.
    towards_noise: more timesteps from the noisy end, where the text decides; see
        ``NoiseSchedule.stratified``.
    flip: mirror pictures too; it swaps left and right, and writing.
    rows: which rows are the subject's own, in scope ``subject``. "phrase": placeholder and class
        noun. "token": the placeholder alone; keep the concept without a class noun then.
        "padding": also all after the prompt; generate with ``include_padding=True`` then.
    size: pixels on a side that pictures are learnt at; None: the model's own. Smaller takes less
        memory, where the model draws at several sizes (FLUX.1, Qwen-Image, Stable Diffusion 3).
    projections: which of a block's projections may have members: "kv" both, "k" or "v" one.
    recompute: activation checkpointing, which takes a third more time and a fraction of the memory.
        None: where there is no room otherwise.
    Raises UsageError for values that cannot be.
    """

    collage_share: float = 0.5
    collage_limit: int = 64
    prior_weight: float | None = None
    prior_count: int = 24
    prior_steps: int = 30
    guidance_scale: float = 2.0
    towards_noise: float = 1.0
    flip: bool = False
    rows: RowChoice = "phrase"
    size: int | None = None
    projections: Projections = "kv"
    recompute: bool | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.collage_share <= 1:
            raise UsageError(f"collage_share={self.collage_share}; expected 0 … 1, a share")
        for name in ("prior_weight", "towards_noise", "guidance_scale", "collage_limit"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UsageError(f"{name}={value}; expected at least 0")
        if self.rows not in ROW_CHOICES:
            raise UsageError(f"rows={self.rows!r}; expected one of {', '.join(ROW_CHOICES)}")
        if self.projections not in PROJECTIONS:
            raise UsageError(
                f"projections={self.projections!r}; expected one of {', '.join(PROJECTIONS)}"
            )
        if self.size is not None:
            check_side("size", self.size)
        if self.prior_count < 1 or self.prior_steps < 1:
            raise UsageError(
                f"prior_count={self.prior_count}, prior_steps={self.prior_steps}; "
                "expected at least 1 of each"
            )

    def for_scope(self, scope: Scope) -> LossSettings:
        """What the loss weighs."""
        prior = self.prior_weight
        if prior is None:
            prior = 0.0 if scope == "subject" else 1.0
        return LossSettings(scope, self.collage_share, prior, self.towards_noise)

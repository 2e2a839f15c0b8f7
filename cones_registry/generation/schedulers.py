"""Schedulers by short name; each call gets an instance of its own."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch

from cones_registry.errors import MissingExtraError, UsageError

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}

# Those that can be told to follow a straight path from noise to picture.
FLOW_SCHEDULERS = {
    "deis": "DEISMultistepScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "euler": "FlowMatchEulerDiscreteScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is of a model trained by flow matching."""
    config = scheduler.config
    return type(scheduler).__name__.startswith("FlowMatch") or bool(
        config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    )


def _flow_settings(kind: type, own: Any) -> dict[str, Any]:
    """What a scheduler must be told to draw with a model trained by flow matching."""
    if kind.__name__.startswith("FlowMatch"):
        return {}
    shift = own.config.get("shift", own.config.get("flow_shift", 1.0))
    return {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": shift,
    }


def fresh_scheduler(own: Any, choice: Any = None) -> Any:
    """A scheduler no one else uses.

    own: the pipeline's scheduler. choice: None (that one), a short name of ``SCHEDULERS``, a
    diffusers scheduler class (made from the pipeline's configuration) or an instance (copied).
    Raises UsageError for anything else, MissingExtraError where a scheduler needs a library that is
    not installed (``lms`` needs scipy).
    """
    if choice is None:
        return copy.deepcopy(own)
    if isinstance(choice, str):
        if choice not in SCHEDULERS:
            raise UsageError(
                f"unknown scheduler {choice!r}. Expected one of {', '.join(SCHEDULERS)}"
            )
        import diffusers

        if is_flow(own):
            if choice not in FLOW_SCHEDULERS:
                raise UsageError(
                    f"scheduler {choice!r} is not made for models trained by flow matching. "
                    f"Expected one of {', '.join(FLOW_SCHEDULERS)}, or leave it out"
                )
            kind = getattr(diffusers, FLOW_SCHEDULERS[choice])
            return kind.from_config(own.config, **_flow_settings(kind, own))
        choice = getattr(diffusers, SCHEDULERS[choice])
    if isinstance(choice, type) and hasattr(choice, "from_config"):
        try:
            return choice.from_config(own.config)
        except ImportError as error:
            raise MissingExtraError(
                f"{choice.__name__} needs a library that is not installed: "
                f"{' '.join(str(error).split())} Or take another scheduler"
            ) from error
    if hasattr(choice, "set_timesteps") and hasattr(choice, "step"):
        return copy.deepcopy(choice)
    raise UsageError(
        f"{choice!r} is no scheduler. Give a name ({', '.join(SCHEDULERS)}), a diffusers scheduler "
        "class or an instance"
    )


def check_scheduler(own: Any, choice: Any, steps: int) -> None:
    """Raise UsageError unless ``choice`` can make ``steps`` steps with what the model predicts.

    own: the pipeline's scheduler, whose configuration says what the model predicts. A scheduler
    that cannot use it says so in its first step, so that step is made here, on one number.
    """
    scheduler = fresh_scheduler(own, choice)
    trained = getattr(scheduler.config, "num_train_timesteps", None)
    if trained is not None and steps > trained:
        raise UsageError(
            f"steps={steps}, but the model was trained with {trained} steps of noise. Expected at "
            f"most {trained}; 20 to 50 are usual"
        )
    reason = _refusal(scheduler, steps)
    if reason is None:
        return
    predicted = getattr(own.config, "prediction_type", "epsilon")
    able = [name for name in SCHEDULERS if _is_able(own, name, steps)]
    raise UsageError(
        f"{type(scheduler).__name__} cannot draw in {steps} steps with this model, which predicts "
        f"{predicted!r}: {reason}. "
        + (
            f"Schedulers that can: {', '.join(able)}"
            if able
            else "No scheduler can: look at prediction_type in the model's scheduler_config.json"
        )
    )


def _is_able(own: Any, name: str, steps: int) -> bool:
    try:
        return _refusal(fresh_scheduler(own, name), steps) is None
    except (MissingExtraError, UsageError):
        return False


def _refusal(scheduler: Any, steps: int) -> str | None:
    """Why a scheduler cannot make its first step, or None; ``scheduler`` is used up by it."""
    number = torch.zeros(1, 1, 1, 1)
    # Noise of its own: the process's generator stays where it is.
    noise = {"generator": torch.Generator("cpu")}
    takes_noise = "generator" in inspect.signature(scheduler.step).parameters
    try:
        shifted = scheduler.config.get("use_dynamic_shifting", False)
        # How far depends on the picture's size, which no scheduler refuses.
        scheduler.set_timesteps(steps, device="cpu", **({"mu": 1.0} if shifted else {}))
        first = scheduler.timesteps[0]
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(number, first)
        scheduler.step(number, first, number, **(noise if takes_noise else {}))
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        return " ".join(str(error).split()).rstrip(".")
    return None

"""Schedulers by short name; each call gets an instance of its own."""

from __future__ import annotations

import copy
from typing import Any

from cones_registry.errors import UsageError

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


def fresh_scheduler(own: Any, choice: Any = None) -> Any:
    """A scheduler no one else uses.

    own: the pipeline's scheduler. choice: None (that one), a short name of ``SCHEDULERS``, a
    diffusers scheduler class (made from the pipeline's configuration) or an instance (copied).
    Raises UsageError for anything else.
    """
    if choice is None:
        return copy.deepcopy(own)
    if isinstance(choice, str):
        if choice not in SCHEDULERS:
            raise UsageError(
                f"unknown scheduler {choice!r}. Expected one of {', '.join(SCHEDULERS)}"
            )
        import diffusers

        choice = getattr(diffusers, SCHEDULERS[choice])
    if isinstance(choice, type) and hasattr(choice, "from_config"):
        return choice.from_config(own.config)
    if hasattr(choice, "set_timesteps") and hasattr(choice, "step"):
        return copy.deepcopy(choice)
    raise UsageError(
        f"{choice!r} is no scheduler. Give a name ({', '.join(SCHEDULERS)}), a diffusers scheduler "
        "class or an instance"
    )

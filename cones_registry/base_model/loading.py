"""A pipeline from its folder: what its libraries raise becomes what a user can act on."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from cones_registry.base_model.quiet import quiet_loading
from cones_registry.base_model.source import DEMO_FOLDER, ModelFolder
from cones_registry.errors import CorruptDataError, MissingExtraError

if TYPE_CHECKING:
    from cones_registry.errors import ConesError

TOKENIZERS = ("tokenizer", "tokenizer_2")
# What the loaders raise for a damaged folder: odd shapes and values, classes that do not exist.
_LOAD_ERRORS = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError)
_MAX_TOKENS = 10**6  # transformers says 10**30 where a tokenizer's configuration says nothing


def load_pipeline(folder: ModelFolder, dtype: torch.dtype) -> Any:
    """The diffusers pipeline in ``folder``, on the CPU.

    Raises CorruptDataError for parts that cannot be read or do not fit each other,
    MissingExtraError if one needs a library that is not installed.
    """
    from safetensors import SafetensorError

    try:
        with quiet_loading(known=folder.path == DEMO_FOLDER):
            from diffusers import DiffusionPipeline

            pipeline = DiffusionPipeline.from_pretrained(
                str(folder.path),
                dtype=dtype,
                variant=folder.variant,
                use_safetensors=True,
                local_files_only=True,
            )
    except (ImportError, SafetensorError, *_LOAD_ERRORS) as error:
        if _is_memory_short(error):
            raise
        raise _load_error(folder, error) from error
    _check_tokenizers(folder, pipeline)
    return pipeline


def _load_error(folder: ModelFolder, error: Exception) -> ConesError:
    reason = " ".join(str(error).split())[:300].rstrip(".")
    if isinstance(error, ImportError):
        return MissingExtraError(
            f"the pipeline in {folder.path} needs a library that is not installed: {reason}. "
            "Install it, or take a model that does without"
        )
    return CorruptDataError(
        f"cannot load the pipeline in {folder.path}: {reason}. Its configuration, its weights and "
        "the installed diffusers and transformers must fit each other. Copy the folder again"
    )


def _is_memory_short(error: Exception) -> bool:
    """Whether there was too little memory, which is no damage of the folder."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _check_tokenizers(folder: ModelFolder, pipeline: Any) -> None:
    """Raise CorruptDataError for a tokenizer whose files were missing: it loads all the same.

    Without its vocabulary it gives every prompt the same rows; without its configuration it does
    not know how many rows there are.
    """
    told = "max_sequence_length" in inspect.signature(type(pipeline).__call__).parameters
    for name in TOKENIZERS:
        tokenizer = getattr(pipeline, name, None)
        if tokenizer is None:
            continue
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            missing = "vocabulary"
        elif tokenizer.model_max_length > _MAX_TOKENS and not told:
            missing = "model_max_length"
        else:
            continue
        raise CorruptDataError(
            f"{folder.path / name} has no {missing}. Copy the folder again, entirely"
        )

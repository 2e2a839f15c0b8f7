"""A pipeline from its folder: what its libraries raise becomes what a user can act on."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import math
import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from cones_registry.base_model.quiet import quiet_loading
from cones_registry.base_model.source import DEMO_FOLDER, LIBRARIES
from cones_registry.errors import ConesError, CorruptDataError, MissingExtraError

if TYPE_CHECKING:
    from cones_registry.base_model.source import ModelFolder, Part

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
# What the loaders raise for a damaged folder: odd shapes and values, classes that do not exist.
_LOAD_ERRORS = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError)
_LOGGER = logging.getLogger(__name__)
_MAX_TOKENS = 10**6  # transformers says 10**30 where a tokenizer's configuration says nothing


def load_pipeline(folder: ModelFolder, dtype: torch.dtype) -> Any:
    """The diffusers pipeline in ``folder``, on the CPU.

    Raises CorruptDataError for parts that cannot be read, that lack a weight or have one that is
    no number, or that do not fit each other; MissingExtraError if one needs a library that is not
    installed.
    """
    from safetensors import SafetensorError

    try:
        with quiet_loading(known=folder.path == DEMO_FOLDER):
            from diffusers import DiffusionPipeline

            # Called by itself, a part says which of its weights were missing. A pipeline keeps
            # that to itself, and draws with whatever numbers stood in the memory.
            models = {
                part.name: _load_model(folder, part, dtype)
                for part in folder.parts
                if _model_class(part) is not None
            }
            pipeline = DiffusionPipeline.from_pretrained(
                str(folder.path), use_safetensors=True, local_files_only=True, **models
            )
    except (ImportError, SafetensorError, *_LOAD_ERRORS) as error:
        if isinstance(error, ConesError) or _is_memory_short(error):
            raise
        raise _load_error(folder, error) from error
    for name, model in models.items():
        _check_finite(folder, name, model, dtype)
    _check_settings(folder, pipeline)
    _check_tokenizers(folder, pipeline)
    return pipeline


def _model_class(part: Part) -> Any:
    """The class that loads ``part``, if it has weights; None for tokenizers, schedulers …"""
    library = part.library if part.library in LIBRARIES else f"diffusers.pipelines.{part.library}"
    found = getattr(importlib.import_module(library), part.class_name, None)
    if found is None or not hasattr(found, "from_pretrained"):
        return None  # the pipeline says what is wrong with it
    is_model = isinstance(found, type) and issubclass(found, torch.nn.Module)
    return found if is_model or part.class_name.startswith("AutoModel") else None


def _load_model(folder: ModelFolder, part: Part, dtype: torch.dtype) -> Any:
    """One part of a pipeline; CorruptDataError unless every one of its weights was in its files."""
    place = folder.path / part.name
    named: dict[str, Any] = {_dtype_argument(part.library): dtype}
    if part.variant is not None:
        named["variant"] = part.variant
    model, told = _model_class(part).from_pretrained(
        str(place), use_safetensors=True, local_files_only=True, output_loading_info=True, **named
    )
    # A buffer that is not in the files is computed when the model is made.
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    missing = sorted(weights & set(told["missing_keys"]))
    if missing:
        raise CorruptDataError(
            f"{place} has no weight {missing[0]!r}{_and_more(missing)}, which {part.class_name} "
            "needs. Copy the folder again, entirely"
        )
    shapes = sorted(each if isinstance(each, str) else each[0] for each in told["mismatched_keys"])
    if shapes:
        raise CorruptDataError(
            f"weight {shapes[0]!r}{_and_more(shapes)} in {place} has another shape than its "
            "config.json says. Copy the folder again, entirely"
        )
    if told["unexpected_keys"]:
        unused = sorted(told["unexpected_keys"])
        _LOGGER.info("%s: %r%s is not used", place, unused[0], _and_more(unused))
    return model


def _dtype_argument(library: str) -> str:
    """What ``from_pretrained`` calls the type of the weights; it was renamed in transformers."""
    if library != "transformers":
        return "torch_dtype"
    return "dtype" if _numbers(version("transformers")) >= (4, 56) else "torch_dtype"


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _check_finite(folder: ModelFolder, name: str, model: Any, dtype: torch.dtype) -> None:
    """Raise CorruptDataError for a weight that holds NaN or infinity, in its type here.

    Such a model draws black pictures. One sum per weight finds most of the sound ones.
    """
    for weight, values in (*model.named_parameters(), *model.named_buffers()):
        if not values.is_floating_point() or bool(values.sum(dtype=torch.float32).isfinite()):
            continue
        bad = int((~torch.isfinite(values)).sum())
        if bad == 0:
            continue
        advice = "The file is damaged: copy or download it again"
        if dtype == torch.float16 and not bool(values.isnan().any()):
            advice += ". If it is sound, its numbers pass what float16 holds: --dtype float32"
        raise CorruptDataError(
            f"{bad} of the {values.numel()} numbers of weight {weight!r} in {folder.path / name} "
            f"are NaN or infinite, and would give black pictures. {advice}"
        )


def _check_settings(folder: ModelFolder, pipeline: Any) -> None:
    """Raise CorruptDataError for numbers in configurations that make every picture black."""
    betas = getattr(pipeline.scheduler, "betas", None)
    if isinstance(betas, torch.Tensor) and not bool(betas.isfinite().all()):
        raise CorruptDataError(
            f"the noise schedule in {folder.path / 'scheduler' / 'scheduler_config.json'} is no "
            "number at some steps (beta_start, beta_end). Copy the file again"
        )
    autoencoder = getattr(pipeline, "vae", None)
    factor = getattr(getattr(autoencoder, "config", None), "scaling_factor", None)
    if isinstance(factor, int | float) and not (math.isfinite(factor) and factor):
        raise CorruptDataError(
            f"scaling_factor in {folder.path / 'vae' / 'config.json'} is {factor}, by which every "
            "picture is divided. Copy the file again"
        )


def _load_error(folder: ModelFolder, error: Exception) -> ConesError:
    reason = " ".join(str(error).split())[:300].rstrip(".")
    if isinstance(error, ImportError):
        return MissingExtraError(
            f"the pipeline in {folder.path} needs a library that is not installed: {reason}. "
            "Install it, or take a model that does without"
        )
    return CorruptDataError(
        f"cannot load the pipeline in {folder.path}: {reason}. Its configuration, its weights and "
        "the installed diffusers and transformers must fit each other. "
        f"{_upgrade(folder)}Copy the folder again"
    )


def _upgrade(folder: ModelFolder) -> str:
    """Which library is older here than the one that wrote the folder; nothing if none is."""
    files = {
        "diffusers": [folder.path / "model_index.json"],
        "transformers": sorted(folder.path.glob("text_encoder*/config.json")),
    }
    for library, places in files.items():
        for place in places:
            try:
                content = json.loads(place.read_text(encoding="utf-8"))
                wrote = content.get("_diffusers_version") or content.get("transformers_version")
            except (OSError, ValueError, AttributeError):
                continue
            here = version(library)
            if isinstance(wrote, str) and _numbers(wrote) > _numbers(here):
                return f"It was written by {library} {wrote}, here is {here}: upgrade {library}. "
    return ""


def _numbers(version_text: str) -> tuple[int, ...]:
    """The first two numbers of a version: ``0.42.1`` -> (0, 42)."""
    return tuple(int(each) for each in re.findall(r"\d+", version_text)[:2])


def _is_memory_short(error: Exception) -> bool:
    """Whether there was too little memory, which is no damage of the folder."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _check_tokenizers(folder: ModelFolder, pipeline: Any) -> None:
    """Raise CorruptDataError for a tokenizer whose files were missing: it loads all the same.

    Without its vocabulary it gives every prompt the same rows; without its configuration it does
    not know how many rows there are.
    """
    # Of transformers the pipelines say how many rows there are, whatever the tokenizer says.
    told = "max_sequence_length" in inspect.signature(type(pipeline).__call__).parameters
    told = told or getattr(pipeline, "unet", None) is None
    for name in TOKENIZERS:
        tokenizer = getattr(pipeline, name, None)
        if tokenizer is None:
            continue
        encoder = getattr(pipeline, name.replace("tokenizer", "text_encoder"), None)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            missing = "vocabulary"
        elif tokenizer.model_max_length > _MAX_TOKENS and not told:
            missing = "model_max_length"
        else:
            if encoder is not None:
                _check_fit(folder, name, tokenizer, encoder, told=told)
            continue
        raise CorruptDataError(
            f"{folder.path / name} has no {missing}. Copy the folder again, entirely"
        )


def _check_fit(folder: ModelFolder, name: str, tokenizer: Any, encoder: Any, *, told: bool) -> None:
    """Raise CorruptDataError for a tokenizer that gives what its text encoder cannot read.

    told: the pipeline says itself how many tokens it asks for.
    """
    place = folder.path / name
    rows = int(encoder.get_input_embeddings().weight.shape[0])
    token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if last >= rows:
        raise CorruptDataError(
            f"{place} gives token {token!r} the number {last}, its text encoder has {rows} rows, "
            f"counted from 0. They are of different models, or the encoder's part of an added "
            "token is missing. Copy both from one model"
        )
    # Older configurations say 2, and then the text encoder takes the largest number for the end.
    ends_wrongly = getattr(encoder.config, "eos_token_id", None) == 2 < tokenizer.eos_token_id
    if ends_wrongly and last > tokenizer.eos_token_id and hasattr(encoder.config, "projection_dim"):
        raise CorruptDataError(
            f"{place} has tokens behind the end of text, as {token!r}, and its text encoder takes "
            f'the last of them for the end. Set "eos_token_id": {tokenizer.eos_token_id} in '
            f"{name.replace('tokenizer', 'text_encoder')}/config.json"
        )
    positions = getattr(encoder.config, "max_position_embeddings", None)
    if not told and isinstance(positions, int) and tokenizer.model_max_length > positions:
        raise CorruptDataError(
            f"{place} cuts a prompt after {tokenizer.model_max_length} tokens, its text encoder "
            f"reads {positions}. They are of different models: copy both from one, or set "
            f"model_max_length to {positions} in {place / 'tokenizer_config.json'}"
        )

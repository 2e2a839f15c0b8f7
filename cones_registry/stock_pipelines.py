"""Concepts in the calls of a pipeline that a user has already, in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from cones_registry.generation.request import ConceptSource
from cones_registry.generation.stock_calls import calls_with_concepts
from cones_registry.registry import Registry


@contextmanager
def concepts(
    pipeline: Any,
    registry: str | os.PathLike[str] | ConceptSource,
    *refs: str,
    **storage_options: Any,
) -> Iterator[Any]:
    """Let the calls of ``pipeline`` draw concepts while the block runs::

        with concepts(pipe, "s3://models/concepts", "alice/dog:prod"):
            picture = pipe("a photo of <alice/dog> on a beach").images[0]

    Every stock call is served: with pictures (img2img, inpainting, ControlNet), several prompts,
    several pictures per prompt, guidance or none. Names in prompts are looked up at each call.
    Weights are never changed, and on leaving, also by an error, the pipeline is as it was.

    Args:
        pipeline: a diffusers pipeline with a U-Net or a transformer that concepts can act in.
        registry: an open registry, or its path or URL.
        refs: versions that plain names stand for, ``alice/dog:prod`` for ``<alice/dog>``. Where a
            prompt does not name such a concept, it acts at its token if the prompt has it; one of
            scope ``prompt`` acts in every call.
        storage_options: for the URL, as ``Registry.open`` takes them.

    Raises:
        UsageError: a pipeline that cannot be served (it says why), or a call without a prompt.
        BaseModelMismatchError: a concept of another base model.
        NotFoundError: no such concept; in a call, with the column of the name.
    """
    opened: AbstractContextManager[Any] = nullcontext(registry)
    if isinstance(registry, str | os.PathLike):
        opened = Registry.open(registry, read_only=True, **storage_options)
    with opened as source, calls_with_concepts(pipeline, source, refs):
        yield pipeline

"""Drawing: requests with any mix of masks, one batch, one unchanged base model."""

from cones_registry.generation.failed import FailedPicturesError
from cones_registry.generation.generator import Generator
from cones_registry.generation.recipe import (
    RECIPE_FORMAT,
    encode_picture,
    read_recipe,
    recipe_of,
)
from cones_registry.generation.request import (
    ConceptSource,
    Reading,
    Request,
    read_prompts,
    read_request,
)
from cones_registry.generation.schedulers import SCHEDULERS

__all__ = [
    "RECIPE_FORMAT",
    "SCHEDULERS",
    "ConceptSource",
    "FailedPicturesError",
    "Generator",
    "Reading",
    "Request",
    "encode_picture",
    "read_prompts",
    "read_recipe",
    "read_request",
    "recipe_of",
]

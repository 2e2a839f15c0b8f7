"""The base model: one loaded pipeline, its layer table, its fingerprint; shared in the process."""

from cones_registry.base_model.defaults import GenerationDefaults
from cones_registry.base_model.model import BaseModel, ModelIdentity

__all__ = ["BaseModel", "GenerationDefaults", "ModelIdentity"]

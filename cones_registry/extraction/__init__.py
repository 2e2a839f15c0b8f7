"""Extraction: from a few pictures of a subject to the concept neurons that draw it.

``Extractor(base).extract(images, token="sks", class_noun="dog") -> Extraction``
"""

from cones_registry.extraction.captions import Caption
from cones_registry.extraction.companions import Companion, base_companions, read_companions
from cones_registry.extraction.cones import Cones
from cones_registry.extraction.extraction import Extraction
from cones_registry.extraction.extractor import METHODS, Extractor
from cones_registry.extraction.first_order import FirstOrder
from cones_registry.extraction.gates import Gates, QuickGates
from cones_registry.extraction.held_out import HeldOutLosses, held_out_losses
from cones_registry.extraction.loss import DivergedError
from cones_registry.extraction.memory import MemoryEstimate
from cones_registry.extraction.methods import Method
from cones_registry.extraction.progress import Step
from cones_registry.extraction.settings import ExtractionSettings
from cones_registry.extraction.subject_images import SubjectImages
from cones_registry.extraction.tuning import TuneSettings, Tuning

__all__ = [
    "METHODS",
    "Caption",
    "Companion",
    "Cones",
    "DivergedError",
    "Extraction",
    "ExtractionSettings",
    "Extractor",
    "FirstOrder",
    "Gates",
    "HeldOutLosses",
    "MemoryEstimate",
    "Method",
    "QuickGates",
    "Step",
    "SubjectImages",
    "TuneSettings",
    "Tuning",
    "base_companions",
    "held_out_losses",
    "read_companions",
]

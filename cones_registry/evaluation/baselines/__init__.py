"""Baselines: the methods concept neurons are compared with. For comparison only.

``train("custom-diffusion", base, subjects) -> Tuned``; ``Generator(tuned.base)`` draws with it.

All share one trainer, which shares loss, batches, noise schedule and data with ``Extractor``.
"""

from cones_registry.evaluation.baselines.method import BASELINES, Baseline
from cones_registry.evaluation.baselines.trainer import train
from cones_registry.evaluation.baselines.tuned import Tuned, combine, load_tuned
from cones_registry.extraction.subject_images import SubjectImages

__all__ = ["BASELINES", "Baseline", "SubjectImages", "Tuned", "combine", "load_tuned", "train"]

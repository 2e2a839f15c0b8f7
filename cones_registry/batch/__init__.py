"""Batch jobs: a file of job lines in, pictures with their recipes out, resumable, on any engine."""

from cones_registry.batch.compositions import Compositions
from cones_registry.batch.engine import Engine
from cones_registry.batch.fields import BadJobsError, BadLine
from cones_registry.batch.job import Job, parse_jobs
from cones_registry.batch.learning import run_learning
from cones_registry.batch.local import LocalEngine
from cones_registry.batch.report import BatchReport, Failure, Progress
from cones_registry.batch.run import run_batch
from cones_registry.batch.watching import RunState, run_picture, run_state

__all__ = [
    "BadJobsError",
    "BadLine",
    "BatchReport",
    "Compositions",
    "Engine",
    "Failure",
    "Job",
    "LocalEngine",
    "Progress",
    "RunState",
    "parse_jobs",
    "run_batch",
    "run_learning",
    "run_picture",
    "run_state",
]

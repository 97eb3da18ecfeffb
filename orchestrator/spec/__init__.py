"""The job file: models of a job, and how a file becomes them. Imports neither torch nor ray."""

from .job import JobSpec
from .load import load_jobs, resolved_yaml

__all__ = ["JobSpec", "load_jobs", "resolved_yaml"]

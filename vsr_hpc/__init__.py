"""Video super-resolution from one job file: one machine, Slurm, AWS Batch, SageMaker."""

from vsr_hpc.version import VERSION as __version__

__all__ = ["__version__"]

"""Video super-resolution from one job file: one machine, Slurm, AWS Batch, SageMaker."""

__version__ = "0.1.0"

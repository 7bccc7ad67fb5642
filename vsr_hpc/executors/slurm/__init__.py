"""Workers as array tasks of Slurm."""

"""The command line. It needs the extra ``cli``, and is imported by nothing else."""

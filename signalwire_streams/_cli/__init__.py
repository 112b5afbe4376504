"""The command line. It uses public names only, needs the extra ``cli``, and is imported by nothing else."""

"""Looks at model folders: which versions they hold, and whether these have settled. It decides nothing else."""

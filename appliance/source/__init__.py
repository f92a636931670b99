"""Looks at model folders: which versions there are, and whether they have settled. It decides nothing."""

"""Counts, in files that outlive their process, and writes the counts as text. What is counted is for others to know."""

"""Counts in files that outlive their processes, and renders the counts as text. The callers decide what to count."""

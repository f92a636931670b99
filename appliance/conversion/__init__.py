"""A job that finds a faster form of a version: what it is told, and its process."""

"""Converters from a SavedModel to other formats. None has landed yet: every version is served by TensorFlow."""

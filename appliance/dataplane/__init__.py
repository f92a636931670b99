"""Carries tensors from the fronts to the workers and back. It never decides what is loaded."""

"""Translate TensorFlow Serving's protocols into requests for the router, and answers back. No model logic."""

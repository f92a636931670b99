"""TensorFlow Serving's JSON and messages, from bytes to values and back. Pure."""

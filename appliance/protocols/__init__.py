"""What is on the wire, from bytes to values and back, pure: TensorFlow Serving's JSON and messages."""

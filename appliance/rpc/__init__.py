"""TensorFlow Serving's gRPC API. It reaches workers only through `inference`."""

"""TensorFlow Serving's gRPC API. It reaches workers through `inference` alone."""

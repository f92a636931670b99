"""TensorFlow Serving's REST API over HTTP. It reaches workers through `inference` alone."""

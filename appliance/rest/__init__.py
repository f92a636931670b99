"""TensorFlow Serving's REST API over HTTP. It reaches workers only through `inference`."""

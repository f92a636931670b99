"""How fast dropserve is beside the bare TensorFlow session and a plain FastAPI server; see README.md."""

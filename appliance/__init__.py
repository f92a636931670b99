"""dropserve: a single-node appliance that serves TensorFlow models."""

__version__ = "0.1.0"

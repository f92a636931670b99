"""The machine's GPUs: read from NVIDIA's driver, as values, and placement of models on them."""

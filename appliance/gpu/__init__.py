"""The GPUs of the machine: asked of the driver, as values, and which model goes to which."""

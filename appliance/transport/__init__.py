"""Carries arrays between a front and a worker: frames, shared memory, connections. It knows no models."""

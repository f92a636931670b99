"""Carries arrays between a front and a worker: frames, shared segments, connections. It knows no model."""

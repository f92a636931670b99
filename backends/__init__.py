"""Frameworks that can run a model version: one module each, behind the contract in `backends.contract`."""

"""Frameworks that can run a model version: one module for each, behind the contract in `backends.contract`."""

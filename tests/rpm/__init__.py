"""Proofs of the built RPM, installed into an empty root: `make test-rpm` runs them (their files are `proof_*.py`)."""

"""The zoo: a model for each way of exporting that people use, what others published, and versions that cannot answer.

`python -m tests.models` (`make zoo`) serves them all, compares the answers with the frameworks' own, and writes
docs/models.md. `make test` runs a part of them (tests/server/test_zoo.py).
"""

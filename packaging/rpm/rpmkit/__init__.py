"""Builds dropserve's pinned runtime and its RPMs: `python -m rpmkit`, with `packaging/rpm` on PYTHONPATH.

It needs Debian 12, the standard library of Python 3.11, and the programs that `make rpm-tools` installs.
"""

"""Programs that use the clients of others, each in a virtual environment of its own: their packages differ from ours.

`make test` installs tritonclient, `make test-clients` the others too. Each program prints what it saw as one
JSON object.
"""

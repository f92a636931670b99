"""Long runs that try to break the server: `make campaign PART=…`, see docs/reliability.md.

- `fuzz` gives mutated input to the parsers, through sockets, and as files that are dropped;
- `faults` kills, stops and starves processes under load;
- `swaps` changes versions under load;
- `leaks` loads and unloads;
- `overload` sends more than the server can answer, from clients that read slowly, never, or leave.

A run is decided by its seed. What it finds is a line of its report; the bounded core of every part runs with the tests
(`test_campaign`).
"""

"""Code shared by the stages of the product: its clients, settings, state, operator commands and embedded stack.

No module here imports a stage (`ingest`, `processors`, `sinks`), except for a test request and a retried dead letter,
which take the same code path as real ones. The modules directly in this package are the values and start-up code that
no single room owns, because almost every room imports them. The import contract is in `pyproject.toml`.
"""

"""Processors: the consumers that limit submissions (`rate_limit`) and store records (`persistence`), on one `engine`.

Imports nothing of the other stages (`ingest`, `sinks`), of the operations or of the commands.
"""

"""Engine of the processors: Faust delivery, ordered batches, retries, commits, log checks and the watchdog.

Imports nothing of `rate_limit` and `persistence`, which pass their work in as a `BatchHandler`.
"""

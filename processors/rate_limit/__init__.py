"""Rate limiter: judges submissions by client network and publishes leads, rejections and windows.

Imports nothing of `processors.persistence`; the decisions themselves are pure functions of `nigredo.rate_limit`.
"""

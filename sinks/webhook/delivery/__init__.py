"""Delivery of one lead: admission of attempts, breaker, rate limit, retry decision and the log of attempts.

Nothing here consumes the group's records or commits offsets: `consumer`, `dispatch` and `loop` are not imported.
"""

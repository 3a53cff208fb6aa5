"""Dispatch of consumed records: connects the group's consumer with the delivery of leads and their references.

Only `loop` and `worker` import this package. It sends no request itself: `delivery` does.
"""

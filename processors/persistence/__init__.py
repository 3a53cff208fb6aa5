"""Persistence: stores the topics' records in PostgreSQL together with their offsets, and runs maintenance jobs.

Imports nothing of `processors.rate_limit`.
"""

"""Maintenance of the persister: retention of rows and topics, and the outbox of limit resets.

No module here stores records or their offsets; both happen only in `processors.persistence.store`.
"""

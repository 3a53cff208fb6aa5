"""Group membership of the sender: polls records, tracks and commits offsets, and compares them with the log.

Nothing here sends a request or decides a lead's outcome: `delivery`, `dispatch` and `loop` are not imported.
"""

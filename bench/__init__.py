"""Bench: measures the product beside references, on a temporary stack of its own.

Stands above every other package; the product imports nothing of it.
"""

"""Sinks: deliver accepted leads from Kafka to other systems; today by webhook.

A sink may import `nigredo` and `schemas`, but no other stage (`ingest`, `processors`).
"""

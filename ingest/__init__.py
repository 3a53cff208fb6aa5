"""Ingest: the HTTP process that accepts forms and publishes submissions. May not import other stages or operations."""

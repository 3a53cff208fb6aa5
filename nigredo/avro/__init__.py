"""Avro encoding: the codec, fast encoders of two records, schema pins, and the registry's client.

No Kafka and no PostgreSQL client is imported here: pins are read and written by `nigredo.kafka.pinned_schemas`.
"""

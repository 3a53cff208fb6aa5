"""Rate limit shared by ingest's edge and the limiter: the pure decision, and the windows stored in memory.

Neither Kafka nor PostgreSQL nor a stage is imported here, so that both users give the same verdicts on the same log.
"""

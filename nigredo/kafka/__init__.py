"""Kafka clients: producers, readers, consumer groups, topic administration, dead letters and schema look-up.

No module here imports a stage (ingest, processors, sinks), an operator's command, `nigredo.control`, `nigredo.process`
or `nigredo.postgres`. More than ten modules, because each module holds one client or one duty of all of them.
"""

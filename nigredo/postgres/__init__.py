"""PostgreSQL access: connection pool and migrations. No query of a stage and no Kafka client belongs here."""

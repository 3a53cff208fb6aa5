"""Health, metrics and logs of every process. Modules here import settings and schemas, but no client of Kafka,
PostgreSQL or the registry, because the clients report here.
"""

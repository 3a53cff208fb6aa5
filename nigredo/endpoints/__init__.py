"""Webhook endpoints: settings, keys, secrets and shown URLs. Modules here import no client of Kafka or PostgreSQL."""

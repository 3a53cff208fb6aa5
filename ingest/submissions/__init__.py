"""Submissions: limits, deduplicates and publishes validated forms. May import publishing and forms, no other room."""

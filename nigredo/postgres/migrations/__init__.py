"""Migrations: numbered SQL files, applied once and never changed. No code."""

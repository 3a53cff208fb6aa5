"""Errors of the product, named for the action that the caller must take."""

from __future__ import annotations


class NigredoError(Exception):
    """Base of the product's own errors. The text may be logged: it never holds personal data or a secret."""


class ConfigurationError(NigredoError):
    """Invalid settings. Every problem found is in `problems`; the operator corrects them and restarts."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class RecordRefused(NigredoError):
    """A record that can never be processed: the caller parks it on the dead-letter topic, commits and continues."""

    def __init__(self, reason: str, error: str) -> None:
        super().__init__(f"{reason}: {error}")
        self.reason = reason
        self.error = error


class DependencyDown(NigredoError):
    """Kafka, the registry or the database is unavailable for now: the caller commits nothing, backs off and retries."""


class StartRefused(NigredoError):
    """Continuing would lose or repeat records: the process logs the reason and stops, so that an operator decides."""

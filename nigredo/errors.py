"""Errors named for what the caller must do about them."""

from __future__ import annotations


class NigredoError(Exception):
    """Root of the product's own errors. The text is fit for a log: it never holds a person's data or a secret."""


class ConfigurationError(NigredoError):
    """The settings cannot work. Every problem found is in `problems`; correct them and start again."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class RecordRefused(NigredoError):
    """This record can never succeed: park it on the dead-letter topic, commit, go on."""

    def __init__(self, reason: str, error: str) -> None:
        super().__init__(f"{reason}: {error}")
        self.reason = reason
        self.error = error


class DependencyDown(NigredoError):
    """Kafka, the registry or the database did not answer; may succeed later: commit nothing, back off, try again."""


class StartRefused(NigredoError):
    """Going on would lose or repeat records; a person must decide. The process stops and says so."""

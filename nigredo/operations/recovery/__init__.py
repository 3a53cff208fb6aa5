"""Recovery after a disaster to the log: `survey` compares the pipeline with the log, `procedure` repairs it.

Only commands call this package, because it blocks, reads whole topics and takes consumer groups out of service. It
imports no stage (`ingest`, `processors`, `sinks`).
"""

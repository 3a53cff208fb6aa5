"""The embedded stack: Kafka, schema registry, PostgreSQL and the product's processes, supervised on one machine.

May not import `nigredo.cli`; runs a process of the product as a command, never by importing its stage.
"""

"""Parts of the embedded stack beside the product's processes, one module for each: how to configure and start it.

Restarts, readiness and shutdown belong to the supervisor, which no part imports.
"""

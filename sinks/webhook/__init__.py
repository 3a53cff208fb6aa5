"""Webhook sender: one process per endpoint that consumes `nigredo.leads` and posts every lead to the receiver.

Imports go down only: main, worker, loop, dispatch, then consumer and delivery, which do not import each other, then
transport and instrumentation, then model.
"""

"""HTTP to one receiver: builds and signs the request, guards the address, reads the response, names failures.

Nothing here retries or touches Kafka: only `model` is imported from the sender.
"""

"""Live settings, IP blocks, API keys and leave requests in `nigredo.control`: their reading, and changes by operators.
Modules here may use Kafka clients, but import no stage and no operator command.
"""

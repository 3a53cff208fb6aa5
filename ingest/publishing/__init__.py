"""Publishing: writes submissions to Kafka, or to the spool while Kafka is unavailable. May import no other room."""

"""Forms: decodes and validates request bodies. May import no other room."""

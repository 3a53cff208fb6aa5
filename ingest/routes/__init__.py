"""Routes: health, lead reading and the OpenAPI document. May import every room below, but not the app."""

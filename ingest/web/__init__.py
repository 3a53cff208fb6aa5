"""Web: errors, headers, logging, metrics and body reading for all routes. May not import routes or the app."""

"""Reads: queries for stored leads. May not import submissions, pages or any room above them."""

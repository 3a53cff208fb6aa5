"""Scenarios of the bench: a module for each, with a function `run` that measures one stage beside its references."""

"""Positions of consumers, compared with the log: trail, proof and watch. Decides nothing about repairs.

The trail is pure and imports no client library. No stage is imported here.
"""

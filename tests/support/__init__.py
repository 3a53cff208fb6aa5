"""Helpers of several test modules: fakes, containers, further nodes and sinks. Contains no tests."""

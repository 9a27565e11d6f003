"""Benchmarks: how fast planning, training and control are on this machine, and how near to its limit."""

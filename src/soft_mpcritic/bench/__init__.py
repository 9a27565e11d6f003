"""Measurements that a user repeats on the machine at hand, one module a subject."""

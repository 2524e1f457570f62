"""Rungs of the ladder of checks after an edit (`core/verify.py`): one file each, cheapest first."""

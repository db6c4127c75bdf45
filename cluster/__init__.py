"""Machines and time. The only package that imports ray. Start with `python -m cluster`."""

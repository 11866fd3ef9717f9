"""VBench: what to generate, resumable generation, the official package in its own interpreter, and total scores.

The official package is never imported here: its pins conflict with current Diffusers. `worker.py` runs under the
interpreter that has it.
"""

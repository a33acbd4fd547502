"""Helpers of several tests: tiny models, hand-made files, stand-ins, references, and programs that tests start."""

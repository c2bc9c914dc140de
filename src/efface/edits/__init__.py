"""Changed weights and what can be done with them: save, apply, merge, LoRA files, combine.

Stands on ``models``; everything above may use it.
"""

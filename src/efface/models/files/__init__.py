"""Models on disk: diffusers folders, single files, the original layout; used by ``models``."""

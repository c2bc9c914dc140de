"""The five steps of the page: one file each, which lays out a step and ties it to the desk."""

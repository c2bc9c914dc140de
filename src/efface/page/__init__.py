"""The page: to remove a concept, see who is hurt, attack it and take it away, in a browser.

Only :mod:`efface.page.app` and what is below ``steps`` know Gradio; the rest is plain Python.
"""

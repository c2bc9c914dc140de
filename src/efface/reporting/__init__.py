"""Numbers in, pages out: report, model card, figures, tables.

Stands on ``evaluation``; studies and the command line use it.
"""

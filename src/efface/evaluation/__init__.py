"""Pictures in, numbers out: samples, protocols, judges, metrics, bench, sensitivity.

Stands on ``methods``; reporting, studies and the command line use it.
"""

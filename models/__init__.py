"""Re-authored, export-friendly PyTorch models that load the published checkpoints.

Nothing here imports ``parity``: a model can be used without the harness that checks it.
"""

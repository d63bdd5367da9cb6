"""Everything that needs torch: the float Vim, checkpoints, calibration, lowering, the fake-quant path.

Importing this package imports nothing; its modules import torch themselves.
"""

"""Losses of the softmax: sampled ones as in TensorFlow, the exact one in blocks, and per-word statistics.

Imports: the root, `candidate_sampling` and `parallel`.
"""

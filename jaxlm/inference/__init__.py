"""Inference with a trained model: exact perplexity, generated text, scores, n-best lists and nearest neighbors.

Imports: the root, `parallel`, `data`, `model` and `losses`.
"""

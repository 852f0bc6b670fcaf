"""Formats other than Keras' own: SavedModel, LiteRT, ONNX and Flax parameters.

Imports: the root, `weights`, `checks` and `keras_models`.
"""

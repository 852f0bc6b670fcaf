"""Formats other than Keras' own: SavedModel, LiteRT and ONNX.

Imports: the root, `weights`, `checks` and `keras_models`.
"""

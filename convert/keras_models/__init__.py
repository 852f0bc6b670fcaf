"""Keras models, in files and in memory: reading, building and writing them.

Imports: the root, `weights` and `checks`.
"""

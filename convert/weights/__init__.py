"""The weights of a model in jaxlm, Keras, cuDNN and Flax: names, layouts, optimizer state and the order of ids.

Imports: the root of `convert`.
"""

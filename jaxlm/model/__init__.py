"""The language model as Flax modules: embedding, LSTM stack, softmax rows, and their initial values.

Imports: the root and `parallel`.
"""

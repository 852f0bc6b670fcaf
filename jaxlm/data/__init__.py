"""From text to batches: text files, tokenization, vocabulary, token files, word vectors, batches.

Imports: the root and `parallel`.
"""

"""Checks of a conversion: predictions of both models, compared within measured bounds.

Imports: the root of `convert`.
"""

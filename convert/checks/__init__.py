"""Checks of conversions: predictions of two models, compared within measured bounds.

Imports: the root of `convert`.
"""

"""Conversion between a run directory and a model file: the table of formats, export and import.

Imports: every folder but `fit`.
"""

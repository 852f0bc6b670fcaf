"""The HTML report of runs: its sections, figures and curves.

Imports: every folder but `cli`.
"""

"""Training runs on disk: the loop, checkpoints, metrics, schedules, resumption and checks of the machine.

Imports: every folder but `reports` and `cli`.
"""

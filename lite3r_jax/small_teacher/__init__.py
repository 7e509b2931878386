"""The small teacher: a VGGT that learns from random weights to compare views.

A training task of its own (`task="small_teacher"`, settings in `small_teacher`): initial values,
losses on tokens that exist in training only, and the objective. The training engine knows none of
these; see `training.tasks`.
"""

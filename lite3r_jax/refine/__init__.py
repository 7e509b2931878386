"""Refines predicted cameras by matches between the photos and bundle adjustment, and fits depth.

`refine(scene, options)` returns the scene with adjusted cameras, depth in their scale and the
points that several views see, and reports what was gained. It never makes a scene worse: where
matches do not determine the cameras better than the prediction does, the prediction stays, with the
reason.
"""

from lite3r_jax.refine.options import RefineOptions
from lite3r_jax.refine.refinement import Refined, check_extra, refine

__all__ = ["RefineOptions", "Refined", "check_extra", "refine"]

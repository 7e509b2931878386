"""Predicted cameras made better by the photos: matches, bundle adjustment, depth that follows.

`refine(scene, options)` gives the scene with adjusted cameras, depth in their scale and the points
that several views see, and says what was gained. It never makes a scene worse: where matches do not
tell cameras better than they were predicted, the prediction stays, with the reason.
"""

from lite3r_jax.refine.options import RefineOptions
from lite3r_jax.refine.refinement import Refined, check_extra, refine

__all__ = ["RefineOptions", "Refined", "check_extra", "refine"]

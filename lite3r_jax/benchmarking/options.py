"""The settings of `--mode=bench`."""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from lite3r_jax.errors import InputError
from lite3r_jax.evaluation.variants import Variant, parse_variants

BASELINES = (Variant("dense", "float32"), Variant("dense", "bfloat16"))
"""Variants that are measured before all others, unless a run asks for one of the two alone."""


@dataclass(frozen=True)
class BenchOptions:
    """Options of a bench run: what is measured, and how.

    Attributes:
        variants: models with commas between, ATTENTION-PRECISION each, see
            `variants.parse_variants`; the baselines are measured in any case. "" for these alone.
        baselines: which of dense-float32 and dense-bfloat16 others are compared with. One alone is
            for machines where the other says nothing, as bfloat16 on a CPU that emulates it.
        student: folder of a distilled student, for variants such as student-bfloat16.
        views: numbers of views with commas between, ascending; what does not fit is left out.
        size: HEIGHTxWIDTH of the images; "" for squares of the size that the weights were made for.
        warmup: passes before those that are timed.
        runs: passes that are timed.
        seconds: a pass that is expected to take longer, going by the operations of the last one
            that was measured, is left out; 0: none is.
        matmul: products of float32: "default" is TF32 on a GPU, "highest" is float32 everywhere.
        isolate: whether each variant runs in a process of its own, so that peaks of memory are its
            own, and one that the system kills leaves the others. Needed for several processes.
        quality: report.json of an evaluation of the same weights, for quality against speed; with
            what lies beside it, for pictures of the scenes.
        seed: of the images.
    """

    variants: str = "sla_global-float32,sla_global-bfloat16,sla_global-fp8_weight_only"
    baselines: str = ",".join(variant.name for variant in BASELINES)
    student: str = ""
    views: str = "2,4,8,16,32,64,100,200,500,1000"
    size: str = ""
    warmup: int = 2
    runs: int = 10
    seconds: float = 60.0
    matmul: Literal["default", "highest"] = "default"
    isolate: bool = True
    quality: str = ""
    seed: int = 0

    def all_variants(self) -> tuple[Variant, ...]:
        """Returns the variants to measure: the baselines, then the others.

        Raises:
            InputError: see `parse_variants`; or a baseline that is none.
        """
        baselines = parse_variants(self.baselines, where="bench.baselines")
        for variant in baselines:
            if variant not in BASELINES:
                known = " and ".join(known.name for known in BASELINES)
                raise InputError(
                    f"bench.baselines: expected one or both of {known}, got {variant.name!r}"
                )
        asked = (
            parse_variants(self.variants, self.student, "bench.variants")
            if self.variants.strip()
            else ()
        )
        return baselines + tuple(variant for variant in asked if variant not in baselines)

    def pixels(self, patch: int, own: int) -> tuple[int, int]:
        """Returns height and width of the images in pixels, from `size`.

        Args:
            patch: the patch size, which has to divide them.
            own: side of the images that the weights were made for.

        Raises:
            InputError: it is not of that form, or does not fit the patches.
        """
        if not self.size:
            return own, own
        match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", self.size)
        if not match or int(match[1]) % patch or int(match[2]) % patch:
            raise InputError(
                f"bench.size: expected HEIGHTxWIDTH in multiples of {patch}, got {self.size!r}"
            )
        return int(match[1]), int(match[2])

    def numbers_of_views(self) -> tuple[int, ...]:
        """Returns the numbers of views to measure, from `views`.

        Raises:
            InputError: they are none, or do not ascend.
        """
        parts = [part.strip() for part in self.views.split(",") if part.strip()]
        numbers = [int(p) if re.fullmatch(r"[1-9]\d{0,4}", p) else 0 for p in parts]
        if not numbers or 0 in numbers or any(a >= b for a, b in pairwise(numbers)):
            raise InputError(
                f"bench.views: expected numbers of views, ascending, got {self.views!r}"
            )
        return tuple(numbers)

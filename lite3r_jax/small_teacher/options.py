"""The settings of the task `small_teacher`."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class AuxiliaryOptions:
    """Weights of auxiliary losses on tokens, which exist in training only; 0 leaves one out.

    Attributes:
        flow: weight of predicting where patches of further views lie in the first.
        points: weight of predicting the places of patches in space.
        contrast: weight of finding the same place by descriptors of patches.
        attention: weight of finding it by the first head of early global blocks.
        width: channels of the descriptors.
        fade_from: step from which all of them fade.
        fade_steps: steps until they are gone; 0 keeps them.
    """

    flow: float = 1.0
    points: float = 1.0
    contrast: float = 0.1
    attention: float = 0.1
    width: int = 64
    fade_from: int = 0
    fade_steps: int = 0


@dataclass(frozen=True)
class SmallTeacherOptions:
    """Settings for training from random weights: initial values, depth of some views, losses.

    Attributes:
        content: root mean square of patches and of their place at the input of the encoder.
        special: standard deviation of camera and register tokens.
        output: factor of the last layer of attention and MLP in every block, whose LayerScale is 1.
        sharpness: factor of queries, and of keys, after their norm.
        dense_fraction: part of the views of a sample, drawn anew in every step, whose depth is
            predicted and compared. Cameras and auxiliary losses see all. The dense head is half of
            the gradient of a small model, and neighboring views teach it nearly the same.
        unroll: see `layers.stacks.scan_layers`.
        auxiliary: see `AuxiliaryOptions`.
    """

    content: float = 0.8
    special: float = 0.5
    output: float = 0.3
    sharpness: float = 2**0.5
    dense_fraction: float = 1.0
    unroll: bool = False
    auxiliary: AuxiliaryOptions = field(default_factory=AuxiliaryOptions)

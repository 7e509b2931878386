"""What is said of images that the weights were not made for."""

from lite3r_jax.models import ModelSpec, check_model
from lite3r_jax.runs.image_sizes import size_note


def test_images_of_another_size_than_the_weights_are_for_are_named():
    model = check_model(ModelSpec("vggt-tiny"))
    assert size_note(model, [(112, 112), (84, 112)]) == ""
    assert size_note(model, [(112, 112), (56, 84)]).startswith(
        "note: images of 84x56 pixels; these weights were made for 112 pixels"
    )

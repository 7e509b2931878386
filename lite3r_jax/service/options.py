"""Settings of the service: models that are offered, and limits of uploads and scenes."""

from dataclasses import dataclass

from lite3r_jax.errors import InputError


@dataclass(frozen=True)
class ServeOptions:
    """Options for the models that the service offers and for limits of uploads and scenes.

    Attributes:
        models: weights that may be chosen besides `weights`, with commas between; one model is
            loaded at a time.
        max_photos: photos of a scene at most, or frames of a video at most.
        max_upload_megabytes: size of the upload of one scene at most, in 10^6 bytes, counted while
            it arrives.
        max_waiting: scenes that wait or arrive at a time; further ones are asked to come later.
        max_scenes: scenes that are kept, failed ones as well; further ones are refused until some
            are deleted.
        allowed_hosts: further names, with commas between, under which browsers may reach the
            service, for instance that of a proxy in front of it; see `viewer.access.refusal`.
    """

    models: str = ""
    max_photos: int = 100
    max_upload_megabytes: float = 2000.0
    max_waiting: int = 20
    max_scenes: int = 500
    allowed_hosts: str = ""

    def __post_init__(self):
        for name in ("max_photos", "max_waiting", "max_scenes"):
            if getattr(self, name) < 1:
                raise InputError(f"serve.{name}: expected at least 1, got {getattr(self, name)}")
        if not self.max_upload_megabytes > 0:
            raise InputError(
                f"serve.max_upload_megabytes: expected more than 0, got {self.max_upload_megabytes}"
            )

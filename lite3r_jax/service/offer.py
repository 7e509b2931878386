"""What may be chosen for a scene, and how the texts of a form become settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lite3r_jax.data.photos import PHOTO_SUFFIXES
from lite3r_jax.data.video import VIDEO_SUFFIXES
from lite3r_jax.errors import shown, unknown_name
from lite3r_jax.exports import FORMATS, parse_formats
from lite3r_jax.service.options import ServeOptions
from lite3r_jax.service.refusals import Refused

MAX_TITLE = 120


@dataclass(frozen=True)
class Offer:
    """What may be chosen.

    Attributes:
        version: of the package.
        models: weights by name, the first is taken unless another is asked for.
        plans: names of attention plans.
        formats: written unless others are asked for.
        options: limits.
        check: settings of a scene (model, attention, size, formats, fps) -> None.
            Raises InputError: they are wrong.
    """

    version: str
    models: tuple[str, ...]
    plans: tuple[str, ...]
    formats: tuple[str, ...]
    options: ServeOptions
    check: Callable[[Mapping[str, str]], Any]

    def described(self) -> dict[str, Any]:
        """As JSON."""
        options = self.options
        return {
            "version": self.version,
            "models": list(self.models),
            "attention": list(self.plans),
            "formats": list(FORMATS),
            "default_formats": list(self.formats),
            "photo_suffixes": sorted(PHOTO_SUFFIXES),
            "video_suffixes": sorted(VIDEO_SUFFIXES),
            "limits": {
                "photos": options.max_photos,
                "upload_bytes": int(options.max_upload_megabytes * 1e6),
                "waiting": options.max_waiting,
                "scenes": options.max_scenes,
            },
        }

    def checked(self, fields: Mapping[str, str]) -> dict[str, str]:
        """The settings of a scene, and its name, from the fields of a form.

        Args:
            fields: name, model, attention, size, formats, fps; those that are absent or empty have
                their defaults.

        Returns:
            name, and the settings that count.

        Raises:
            InputError: a value is wrong; one line that names the field.
        """
        given = {name: text.strip() for name, text in fields.items() if text.strip()}
        name = given.pop("name", "")
        if len(name) > MAX_TITLE:
            raise Refused(f"name: longer than {MAX_TITLE} characters")
        settings = {"model": self.models[0], "formats": ",".join(self.formats)} | given
        if settings["model"] not in self.models:
            raise unknown_name("model", settings["model"], self.models)
        if ".json" in settings.get("attention", "").lower():
            raise Refused("attention: expected a plan such as sla_global; files are not read here")
        settings["formats"] = ",".join(parse_formats(settings["formats"]))
        self.check(settings)
        return {"name": shown(name, MAX_TITLE) if name else "", **settings}

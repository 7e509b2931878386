"""Choices that the service offers for a scene, and validation of the fields of a form."""

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
    """The models, attention plans, formats and limits that the service offers for a scene.

    Attributes:
        version: version of the package.
        models: names of weights; the first is the default.
        plans: names of attention plans.
        formats: formats that are written by default.
        options: limits of the service.
        check: settings of a scene (model, attention, size, formats, fps) -> None.
            Raises InputError: a setting is wrong.
    """

    version: str
    models: tuple[str, ...]
    plans: tuple[str, ...]
    formats: tuple[str, ...]
    options: ServeOptions
    check: Callable[[Mapping[str, str]], Any]

    def described(self) -> dict[str, Any]:
        """Returns the choices and limits as plain data for JSON."""
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
        """Validates the fields of a form; returns the name and the settings of a scene.

        Args:
            fields: name, model, attention, size, formats, fps; fields that are absent or empty have
                their defaults.

        Returns:
            `name` ("" if not given), and the settings that are given or have a default.

        Raises:
            InputError: a value is wrong; the message is one line that names the field.
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

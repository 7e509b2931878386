"""Manifests: what their hash vouches for is of the types that it is used as."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from lite3r_jax.weights.safetensors_writer import FileRecord
from lite3r_jax.weights.sealed_json import check_types


@dataclass(frozen=True)
class Whole:
    name: str
    count: int
    rate: float
    open: bool
    kind: Literal["a", "b"]
    perhaps: str | None
    names: tuple[str, ...]
    files: Mapping[str, FileRecord]
    anything: Any = None


GOOD = Whole("x", 3, 1, True, "a", None, ("y",), {"f": FileRecord(1, "0")})


@pytest.mark.parametrize(
    "field,value",
    [
        ("name", 3), ("name", None), ("count", "3"), ("count", 1.0), ("count", True),
        ("count", 2**64), ("rate", "1"), ("rate", float("inf")), ("rate", float("nan")),
        ("open", 1), ("kind", "c"), ("kind", ["a"]), ("perhaps", 1), ("names", "abc"),
        ("names", ("y", 1)), ("names", ["y"]), ("files", []), ("files", {"f": {"size": 1}}),
        ("files", {1: FileRecord(1, "0")}), ("files", {"f": FileRecord("1", "0")}),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_with_its_field(field, value):
    check_types(GOOD)
    with pytest.raises(TypeError, match=f"^{field}: "):
        check_types(replace(GOOD, **{field: value}))


def test_values_of_every_type_are_taken():
    check_types(replace(GOOD, rate=1.5, perhaps="x", names=(), files={}, anything=[{}]))

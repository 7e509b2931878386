"""Weights by name: fetched and converted once, and without a network the way to do it by hand."""

import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from lite3r_jax.backbones.base import Published, get_backbone, register, unregister
from lite3r_jax.errors import InputError
from lite3r_jax.weights import hub
from lite3r_jax.weights.load import load

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def download(toy, toy_file, tmp_path, monkeypatch):
    """A hub that has the toy; the list holds what was fetched."""
    entry = get_backbone("toy")
    published = Published("Toy", "someone/toy", entry.default_config, "CC-BY-NC-4.0", "1 kB")
    unregister("toy")
    register(replace(entry, published=(published,)))
    calls = []

    def fetch(repo, file):
        calls.append((repo, file))
        path = tmp_path / "snapshots" / COMMIT / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(toy_file.read_bytes())
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    return calls


def test_fetched_and_converted_once(toy, download, tmp_path):
    cache = tmp_path / "deep" / "cache"
    first = load("someone/toy", cache_dir=cache)
    second = load("someone/toy", cache_dir=cache)
    assert download == [("someone/toy", "model.safetensors")]
    assert (first.trunk.token[...] == second.trunk.token[...]).all()
    assert [p.name for p in cache.iterdir()] == ["someone--toy"]
    manifest = (cache / "someone--toy" / "manifest.json").read_text()
    assert COMMIT in manifest and "CC-BY-NC-4.0" in manifest


def test_a_damaged_cache_says_how_to_renew_it(download, tmp_path):
    load("someone/toy", cache_dir=tmp_path)
    path = tmp_path / "someone--toy" / "trunk.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"trunk.safetensors: damaged.*delete .*someone--toy and"):
        load("someone/toy", cache_dir=tmp_path)


def test_a_download_that_does_not_fit_leaves_no_cache(toy, download, toy_file, tmp_path):
    toy_file.write_bytes(toy_file.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated"):
        load("someone/toy", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache" / "someone--toy").exists()


def _by_hand(message: str, cache: Path) -> None:
    out = cache / "facebook--VGGT-1B"
    assert "download model.safetensors (5.0 GB) from the hub repository facebook/VGGT-1B" in message
    assert f"lite3r convert vggt model.safetensors {out}" in message
    assert message.isprintable()


@pytest.mark.parametrize("kind", ["OSError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"])
def test_offline_it_says_what_to_put_where(monkeypatch, tmp_path, kind):
    def offline(*arguments, **options):
        raise getattr(huggingface_hub.errors, kind, OSError)("no route to host\nat all")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(InputError, match="no route to host at all") as error:
        load("facebook/VGGT-1B", cache_dir=tmp_path)
    _by_hand(str(error.value), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_huggingface_hub(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface_hub") as error:
        load("facebook/VGGT-1B", cache_dir=tmp_path)
    _by_hand(str(error.value), tmp_path)


def test_converted_by_hand_is_found_without_the_hub(toy, download, toy_file, tmp_path):
    toy.convert(toy_file, tmp_path / "someone--toy")
    load("someone/toy", cache_dir=tmp_path)
    assert download == []


def test_an_unknown_repository(tmp_path):
    with pytest.raises(InputError, match=r"facebook/VGGT-2B: .* one of: facebook/VGGT-1B"):
        load("facebook/VGGT-2B", cache_dir=tmp_path)


def test_a_cache_that_cannot_be_made(download, toy_file):
    with pytest.raises(InputError, match="cannot be created"):
        load("someone/toy", cache_dir=toy_file / "cache")
    assert download == []


def test_what_looks_like_a_repository():
    assert hub.looks_like_repo("facebook/VGGT-1B")
    for path in ("weights", "/a/b", "a/b/c", "./a", "../a", "a/", "~/a", "a b/c", "ä/b", "a/b\n"):
        assert not hub.looks_like_repo(path)

"""GLB, read back by trimesh and, what trimesh does not keep, by a parser of its own."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import trimesh

from lite3r_jax.errors import InputError
from lite3r_jax.exports import ExportOptions, PointOptions, glb, select_points, write

OPTIONS = ExportOptions(points=PointOptions(max_points=3000))
DTYPES = {5126: "<f4", 5123: "<u2"}
WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


def parse(path):
    """(JSON tree, arrays of the accessors), checking what the container promises."""
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    tree = json.loads(data[20 : 20 + size])
    binary_size, kind = struct.unpack_from("<I4s", data, 20 + size)
    assert kind == b"BIN\0" and binary_size == tree["buffers"][0]["byteLength"]
    binary = data[28 + size :]
    assert len(binary) == binary_size and binary_size % 4 == 0
    arrays = []
    for accessor in tree["accessors"]:
        view = tree["bufferViews"][accessor["bufferView"]]
        part = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        assert view["byteOffset"] % 4 == 0
        array = np.frombuffer(part, DTYPES[accessor["componentType"]])
        array = array.reshape(-1, WIDTHS[accessor["type"]])
        assert len(array) == accessor["count"]
        if "min" in accessor:
            np.testing.assert_array_equal(accessor["min"], array.min(0))
            np.testing.assert_array_equal(accessor["max"], array.max(0))
        arrays.append(array)
    return tree, arrays


@pytest.fixture(scope="module")
def path(room, tmp_path_factory):
    return write(room.scene, tmp_path_factory.mktemp("glb"), ["glb"], OPTIONS)["glb"]


@pytest.fixture(scope="module")
def read(path):
    return trimesh.load(path)


def to_gltf(room, xyz):
    """World points, from the truth: the first camera looks along -z, +y is up."""
    return (xyz @ room.rotations[0].T + room.shifts[0]) * [1, -1, -1]


def test_points_are_those_of_the_scene_before_the_first_camera(room, read):
    cloud = select_points(room.scene, OPTIONS.points)
    points = read.geometry["points"]
    assert isinstance(points, trimesh.PointCloud)
    assert np.abs(points.vertices - to_gltf(room, cloud.xyz)).max() < 1e-5
    assert points.vertices[cloud.view == 0, 2].max() < 0  # what it sees lies along -z


def test_colors_are_linear_light(room, path):
    tree, arrays = parse(path)
    (primitive,) = tree["meshes"][0]["primitives"]
    assert primitive["mode"] == 0
    accessor = primitive["attributes"]["COLOR_0"]
    assert tree["accessors"][accessor]["normalized"] is True
    colors = arrays[accessor] / 65535
    assert (colors[:, 3] == 1).all()
    linear = colors[:, :3]
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    cloud = select_points(room.scene, OPTIONS.points)
    np.testing.assert_array_equal(np.rint(srgb * 255), cloud.rgb)


def test_every_view_is_a_node_at_its_camera(room, read):
    for s, name in enumerate(room.scene.names):
        matrix, geometry = read.graph[name]
        assert geometry == name
        center = -room.rotations[s].T @ room.shifts[s]
        assert np.abs(matrix[:3, 3] - to_gltf(room, center)).max() < 1e-5
        assert np.abs(matrix[:3, :3] @ matrix[:3, :3].T - np.eye(3)).max() < 1e-5
    first, _ = read.graph[room.scene.names[0]]
    assert np.abs(first - np.eye(4)).max() < 1e-6


def test_known_points_reproject_through_the_frusta(room, read):
    height, width = room.scene.size
    for s, name in enumerate(room.scene.names):
        matrix, _ = read.graph[name]
        bars = read.geometry[name].vertices.reshape(-1, 2, 4, 3).mean(2)
        apex, upper_left, lower_right = bars[0, 0], bars[0, 1], bars[2, 1]
        assert np.abs(apex).max() < 1e-7 and upper_left[2] == pytest.approx(lower_right[2])
        assert upper_left[0] < lower_right[0] and upper_left[1] > lower_right[1]
        xyz = room.seen(s)
        local = (to_gltf(room, xyz) - matrix[:3, 3]) @ matrix[:3, :3]
        assert (local[:, 2] < 0).all()
        on_plane = local[:, :2] / local[:, 2:] * upper_left[2]
        share = (on_plane - upper_left[:2]) / (lower_right - upper_left)[:2]
        pixels = share * [width, height] - 0.5
        wanted = room.to_network(s, room.project(s, xyz))
        assert np.abs(pixels - wanted).max() < 0.01


def test_the_tip_is_on_the_upper_side(read, room):
    bars = read.geometry[room.scene.names[0]].vertices.reshape(-1, 2, 4, 3).mean(2)
    corners, tip = bars[:4, 1], bars[8, 1]
    assert tip[1] > corners[:, 1].max()


def test_gltf_cameras_have_the_field_of_view(room, path):
    tree, _ = parse(path)
    height, width = room.scene.size
    by_name = {node["name"]: node for node in tree["nodes"]}
    for s, name in enumerate(room.scene.names):
        (child,) = by_name[name]["children"]
        lens = tree["cameras"][tree["nodes"][child]["camera"]]["perspective"]
        k = room.scene.intrinsics[s]
        tall = np.tan(lens["yfov"] / 2)
        assert tall == pytest.approx(height / 2 / k[1, 1], rel=1e-5)
        assert tall * lens["aspectRatio"] == pytest.approx(width / 2 / k[0, 0], rel=1e-5)


def test_cameras_have_colors_of_their_own(path):
    tree, _ = parse(path)
    colors = [m["pbrMetallicRoughness"]["baseColorFactor"] for m in tree["materials"]]
    assert len({tuple(color) for color in colors}) == 4


def test_size_of_the_frusta_follows_the_points(room, read):
    reach = np.percentile(read.geometry["points"].vertices, [5, 95], axis=0)
    diagonal = np.linalg.norm(reach[1] - reach[0])
    for name in room.scene.names:
        longest = np.linalg.norm(read.geometry[name].vertices, axis=-1).max()
        assert longest == pytest.approx(0.05 * diagonal, rel=0.3)


def test_zero_draws_no_frusta(room, tmp_path):
    path = write(room.scene, tmp_path, ["glb"], replace(OPTIONS, frustum=0))["glb"]
    assert list(trimesh.load(path).geometry) == ["points"]


def test_file_beyond_the_format_is_refused(room, tmp_path, monkeypatch):
    monkeypatch.setattr(glb, "_MAX_BYTES", 10_000)
    with pytest.raises(InputError, match=r"points\.max_points"):
        write(room.scene, tmp_path, ["glb"], OPTIONS)
    assert list(tmp_path.iterdir()) == []

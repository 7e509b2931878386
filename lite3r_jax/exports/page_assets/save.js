// What can be taken out of the page: a picture, the points that are shown, a path of cameras.

function download(name, kind, parts) {
  const address = URL.createObjectURL(new Blob(parts, { type: kind }));
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

const fileName = (suffix) => `${scene.title.replace(/[^\p{L}\p{N} ._-]+/gu, "_").slice(0, 80) || "scene"}${suffix}`;

// {count, xyz: Float32Array, rgb: Uint8Array, confidence: Float32Array} of the points that are shown.
function shownPoints() {
  const shown = filter();
  const numbers = [];
  for (let i = 0; i < points.count; i++) if (shown(i)) numbers.push(i);
  const xyz = new Float32Array(3 * numbers.length);
  const rgb = new Uint8Array(3 * numbers.length);
  const confidence = new Float32Array(numbers.length);
  numbers.forEach((i, k) => {
    xyz.set(points.place.subarray(4 * i, 4 * i + 3), 3 * k);
    rgb.set(points.rgb.subarray(3 * i, 3 * i + 3), 3 * k);
    confidence[k] = scene.points.confidence[points.belongs[4 * i]];
  });
  return { count: numbers.length, xyz, rgb, confidence };
}

// PLY, little-endian, in the world of the scene.
function plyOf({ count, xyz, rgb, confidence }) {
  const properties = ["float x", "float y", "float z", "uchar red", "uchar green", "uchar blue", "float confidence"];
  const head = [
    "ply", "format binary_little_endian 1.0",
    "comment world: camera frame of the first view (OpenCV: x right, y down, z forward)",
    `comment unit: ${scene.unit}`,
    `element vertex ${count}`, ...properties.map((p) => `property ${p}`), "end_header", "",
  ].join("\n");
  const data = new DataView(new ArrayBuffer(19 * count));
  for (let i = 0; i < count; i++) {
    for (let k = 0; k < 3; k++) {
      data.setFloat32(19 * i + 4 * k, xyz[3 * i + k], true);
      data.setUint8(19 * i + 12 + k, rgb[3 * i + k]);
    }
    data.setFloat32(19 * i + 15, confidence[i], true);
  }
  return [head, data];
}

// GLB: axes of glTF, x right, y up, z backward of the first camera; colors are linear light.
function glbOf({ count, xyz, rgb }) {
  const { eye, turn } = views[0].pose;
  const back = [-turn[0], -turn[1], -turn[2], turn[3]];
  const places = new Float32Array(3 * count);
  const colors = new Uint16Array(4 * count).fill(65535);
  const [low, high] = [[Infinity, Infinity, Infinity], [-Infinity, -Infinity, -Infinity]];
  const linear = Array.from({ length: 256 }, (_, v) => {
    const c = v / 255;
    return Math.round(65535 * (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  });
  for (let i = 0; i < count; i++) {
    const [x, y, z] = rotate(back, sub(xyz.subarray(3 * i, 3 * i + 3), eye));
    places.set([x, -y, -z], 3 * i);
    for (let k = 0; k < 3; k++) {
      low[k] = Math.min(low[k], places[3 * i + k]);
      high[k] = Math.max(high[k], places[3 * i + k]);
      colors[4 * i + k] = linear[rgb[3 * i + k]];
    }
  }
  const tree = {
    asset: { version: "2.0", generator: "lite3r_jax" },
    scene: 0,
    scenes: [{ nodes: [0] }],
    nodes: [{ mesh: 0, name: "points" }],
    meshes: [{ primitives: [{ attributes: { POSITION: 0, COLOR_0: 1 }, mode: 0 }] }],
    buffers: [{ byteLength: 20 * count }],
    bufferViews: [
      { buffer: 0, byteOffset: 0, byteLength: 12 * count, target: 34962 },
      { buffer: 0, byteOffset: 12 * count, byteLength: 8 * count, target: 34962 },
    ],
    accessors: [
      { bufferView: 0, componentType: 5126, count, type: "VEC3", min: low, max: high },
      { bufferView: 1, componentType: 5123, normalized: true, count, type: "VEC4" },
    ],
  };
  const text = new TextEncoder().encode(JSON.stringify(tree));
  const padded = new Uint8Array(4 * Math.ceil(text.length / 4)).fill(32);
  padded.set(text);
  const heads = [[0x46546c67, 2, 28 + padded.length + 20 * count, padded.length, 0x4e4f534a], [20 * count, 0x004e4942]];
  return [new Uint32Array(heads[0]), padded, new Uint32Array(heads[1]), places, colors];
}

function savePoints(write, suffix, kind) {
  const shown = shownPoints();
  if (shown.count) download(fileName(suffix), kind, write(shown));
  else complain("No point is shown, so there is none to save.");
}

function savePicture() {
  draw(performance.now()); // the buffer is empty after it was shown
  canvas.toBlob((blob) => download(fileName(".png"), "image/png", [blob]), "image/png");
}

// -- a path of cameras ----------------------------------------------------------------------------

const kept = []; // cameras as below

// A camera as the camera_path of nerfstudio has it: camera to world with the axes of OpenGL, in the
// world of the scene; the vertical field of view in degrees.
function pathCamera({ eye, turn }, fov, aspect) {
  const [right, up, backward] = [[1, 0, 0], [0, -1, 0], [0, 0, -1]].map((axis) => rotate(turn, axis));
  const rows = [0, 1, 2].map((i) => [right[i], up[i], backward[i], eye[i]]);
  return { camera_to_world: [...rows.flat(), 0, 0, 0, 1], fov, aspect };
}

const degrees = (slope) => (360 / Math.PI) * Math.atan(slope);

// Cameras that were kept, or those of the views.
function cameraPath() {
  const [width, height] = scene.size;
  const own = views.map((v) => pathCamera(v.pose, degrees(height / 2 / v.intrinsics[1]), width / height));
  const cameras = kept.length ? kept : own;
  const size = kept.length ? [canvas.width, canvas.height] : scene.size;
  return {
    camera_type: "perspective",
    render_width: size[0],
    render_height: size[1],
    fps: 24,
    seconds: cameras.length,
    camera_path: cameras,
  };
}

function showPath(text = "") {
  $("path-clear").disabled = !kept.length;
  const what = kept.length ? `${kept.length} view${kept.length > 1 ? "s" : ""} kept` : `The path of the ${views.length} cameras, until you add views`;
  $("path-note").textContent = text || `${what}. JSON of nerfstudio's camera_path.`;
}

async function copyPath() {
  try {
    await navigator.clipboard.writeText(JSON.stringify(cameraPath(), null, 1));
    showPath(`Copied ${cameraPath().camera_path.length} cameras.`);
  } catch (error) {
    complain(`The browser did not let the page copy: ${error.message ?? error}`);
  }
}

$("save-picture").addEventListener("click", savePicture);
$("save-ply").addEventListener("click", () => savePoints(plyOf, ".ply", "application/octet-stream"));
$("save-glb").addEventListener("click", () => savePoints(glbOf, ".glb", "model/gltf-binary"));
$("path-add").addEventListener("click", () => {
  const { pose, lens } = orbit.now(performance.now());
  kept.push(pathCamera(pose, degrees(1 / lens[1]), canvas.clientWidth / canvas.clientHeight));
  showPath();
});
$("path-clear").addEventListener("click", () => {
  kept.length = 0;
  showPath();
});
$("path-copy").addEventListener("click", copyPath);
showPath();

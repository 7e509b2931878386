// The page: parts, controls, film strip and the loop that draws.

const $ = (id) => document.getElementById(id);
const views = scene.views;
views.forEach((view, i) => Object.assign(view, { index: i, pose: poseOf(view.extrinsics), color: viewColor(i) }));
const up = unit(rotate(views[0].pose.turn, [0, -1, 0]));

function complain(text) {
  $("message").textContent = text;
  $("message").hidden = false;
}
window.addEventListener("error", (event) => complain(`Something in this page failed: ${event.message}`));
window.addEventListener("unhandledrejection", (event) => complain(`Something in this page failed: ${event.reason}`));

// -- theme --------------------------------------------------------------------------------------

const prefersLight = matchMedia("(prefers-color-scheme: light)");
let background = [0, 0, 0];

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "light" ? "Dark" : "Light";
  const hex = getComputedStyle(document.documentElement).getPropertyValue("--stage").trim();
  background = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255);
  redraw();
}
const followSystem = () => setTheme(prefersLight.matches ? "light" : "dark");
prefersLight.addEventListener("change", followSystem);
$("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "light" ? "dark" : "light"));

// -- the cloud ----------------------------------------------------------------------------------

const canvas = $("canvas");
const cloud = createCloud(canvas, views, scene.size);
const orbit = createOrbit(canvas, up, redraw, () => showThrough());
let points = null; // {count, place, belongs, rgb}; `belongs`: level, view, backgrounds, 0
let surroundings = { center: [0, 0, 0], radius: 1, farthest: 2, reach: 0.1, share: 1, sample: [] };
let selected = 0;
let waiting = false;

function redraw() {
  if (waiting || !cloud) return;
  waiting = true;
  requestAnimationFrame(draw);
}

const limit = () => Math.floor((256 * $("threshold").value) / 100); // the first level that is shown
const backgrounds = ["sky", "black", "white"];
const hidden = () => backgrounds.reduce((bits, name, i) => bits | ($(`hide-${name}`).checked ? 1 << i : 0), 0);

// The first and the last view that is shown.
function frames() {
  if ($("only").checked) return [selected, selected];
  const ends = [Number($("first").value), Number($("last").value)];
  return [Math.min(...ends), Math.max(...ends)];
}

// Whether a point is shown, as a function of its number.
function filter() {
  const [level, bits, [first, last]] = [limit(), hidden(), frames()];
  const { belongs } = points;
  return (i) =>
    belongs[4 * i] >= level && belongs[4 * i + 1] >= first && belongs[4 * i + 1] <= last && !(belongs[4 * i + 2] & bits);
}

const reaches = () => views.map((v) => (2 * surroundings.reach * 2 ** $("reach").value * v.intrinsics[0]) / scene.size[0]);

function draw(time) {
  waiting = false;
  const density = Math.min(devicePixelRatio || 1, 2);
  const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((v) => Math.max(1, Math.round(v * density)));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const { pose, lens, moving } = orbit.now(time);
  const through = orbit.through();
  const far = length(sub(pose.eye, surroundings.center)) + surroundings.farthest;
  cloud.draw({
    pose, lens, far, background, density,
    near: Math.min(far * 1e-3, 0.2 * Math.min(...reaches())),
    size: surroundings.share * 2 ** $("size").value,
    level: limit(),
    frames: frames(),
    hidden: hidden(),
    lines: $("frusta").checked && !through,
    photos: $("photos").checked && !through,
    overlay: through ? [through.index, moving ? 0 : $("overlay").value / 100] : [-1, 0],
  });
  if (moving) redraw();
}

async function loadPoints() {
  const { count, low, step } = scene.points;
  const [x, y, z, r, g, b, level, view, background] = await unpack("points", count, [4, 4, 4, 2, 2, 2, 2, 4, 1]);
  const place = new Float32Array(4 * count);
  const belongs = new Uint16Array(4 * count);
  const rgb = new Uint8Array(3 * count);
  for (let i = 0; i < count; i++) {
    const point = [low[0] + step * x[i], low[1] + step * y[i], low[2] + step * z[i]];
    const { pose, intrinsics } = views[view[i]];
    place.set(point, 4 * i);
    place[4 * i + 3] = length(sub(point, pose.eye)) / intrinsics[0]; // the width of a pixel there
    belongs.set([level[i], view[i], background[i]], 4 * i);
    rgb[3 * i] = r[i];
    rgb[3 * i + 1] = g[i];
    rgb[3 * i + 2] = b[i];
  }
  points = { count, place, belongs, rgb };
  surroundings = survey();
  surroundings.share = shareOfPoint();
  cloud.setPoints(place, belongs);
  colorPoints();
  $("loading").hidden = true;
}

// Where the scene is and how large, without its outliers.
function survey() {
  const stride = Math.max(1, Math.floor(points.count / 20000));
  const sample = [];
  let farthest = 0;
  const shown = filter();
  for (let i = 0; i < points.count; i += stride) {
    if (shown(i)) sample.push(points.place.slice(4 * i, 4 * i + 3));
  }
  const middle = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
  const center = sample.length ? [0, 1, 2].map((axis) => middle(sample.map((p) => p[axis]))) : [0, 0, 0];
  const radius = sample.length ? middle(sample.map((p) => length(sub(p, center)))) : 1;
  for (let i = 0; i < points.count; i++) {
    farthest = Math.max(farthest, length(sub(points.place.subarray(4 * i, 4 * i + 3), center)));
  }
  const eyes = views.map((v) => v.pose.eye);
  const gaps = eyes.map((a, i) => Math.min(...eyes.filter((_, j) => j !== i).map((b) => length(sub(a, b)))));
  const gap = views.length > 1 ? middle(gaps) : radius;
  const reach = clamp(0.3 * gap, 0.02 * radius, 0.14 * radius);
  return { center, radius, farthest: 1.01 * farthest + radius, reach, sample };
}

// The radius in pixels at which the points of all views that see a place just cover it.
function shareOfPoint() {
  const [width, height] = scene.size;
  const some = surroundings.sample.filter((_, i) => i % 20 === 0);
  let seen = 0;
  for (const { pose, intrinsics } of views) {
    const lens = viewLens(intrinsics, scene.size, width, height);
    for (const point of some) {
      const [x, y, z] = onScreen(point, pose, lens, width, height);
      if (z > 0 && x > 0 && x < width && y > 0 && y < height) seen++;
    }
  }
  const overlap = Math.max(1, seen / Math.max(1, some.length));
  const spacing = Math.sqrt((views.length * width * height) / points.count / overlap);
  return Math.max(0.7, 1.2 * spacing);
}

function colorPoints() {
  const mode = document.querySelector("[name=coloring]:checked").value;
  let rgb = points.rgb;
  if (mode !== "photo") {
    rgb = new Uint8Array(3 * points.count);
    for (let i = 0; i < points.count; i++) {
      rgb.set(mode === "view" ? views[points.belongs[4 * i + 1]].color : mapColors[points.belongs[4 * i]], 3 * i);
    }
  }
  cloud.setColors(rgb);
  $("confidence-bar").hidden = mode !== "confidence";
  redraw();
}

// After a change of what is hidden.
function showFilters() {
  const value = brief(scene.points.confidence[limit()]);
  $("threshold-value").textContent = `${$("threshold").value}\u2009%`;
  const [first, last] = [Number($("first").value), Number($("last").value)];
  $("first-value").textContent = `${first + 1}`;
  $("last-value").textContent = `${last + 1}`;
  const shown = points ? filter() : () => false;
  let count = 0;
  for (let i = 0; points && i < points.count; i++) count += shown(i);
  $("shown").textContent = `${grouped(count)} points shown; confidence ${value} or more`;
  showCameras();
}

function showCameras() {
  $("reach-value").textContent = `\u00d7\u2009${(2 ** $("reach").value).toFixed(2)}`;
  cloud?.setCameras(reaches(), selected, frames());
  redraw();
}

// From behind and above the first camera, as near as shows nearly all of the scene.
function startView(duration) {
  const eye = views[0].pose.eye;
  const [width, height] = [canvas.clientWidth || 1, canvas.clientHeight || 1];
  const lens = freeLens(FREE_FOCAL, width, height);
  const { center, radius, sample } = surroundings;
  const ahead = length(sub(center, eye)) > 0.3 * radius ? unit(sub(center, eye)) : rotate(views[0].pose.turn, [0, 0, 1]);
  const arm = unit(add(scale(ahead, -1), scale(up, 0.2)));
  let target = center;
  const seenFrom = (distance) => lookAt(add(target, scale(arm, distance)), target, up);
  const inSight = (list, pose, margin) => list.filter((p) => {
    const [x, y, z] = onScreen(p, pose, lens, width, height);
    return z > 0 && Math.abs(x / width - 0.5) < 0.5 - margin && Math.abs(y / height - 0.5) < 0.5 - margin;
  }).length / Math.max(1, list.length);
  let distance = radius;
  for (let round = 0; round < 3; round++) {
    let [near, far] = [0.05 * radius, 20 * radius];
    for (let i = 0; i < 20; i++) {
      distance = Math.sqrt(near * far);
      if (inSight(sample, seenFrom(distance), 0.02) < 0.88) near = distance;
      else far = distance;
    }
    // the middle of what is seen comes to the middle of the screen
    const pose = seenFrom(distance);
    const seen = sample.map((p) => onScreen(p, pose, lens, width, height)).filter(([, , z]) => z > 0);
    const [x, y] = [0, 1].map((axis) => {
      const sorted = seen.map((p) => p[axis]).sort((a, b) => a - b);
      return sorted.length ? (sorted[Math.floor(0.06 * sorted.length)] + sorted[Math.floor(0.94 * sorted.length)]) / 2 : 0;
    });
    const [right, down] = [(x / width - 0.5) * (2 / lens[0]), (y / height - 0.5) * (2 / lens[1])];
    if (seen.length) target = add(target, rotate(pose.turn, [right * distance, down * distance, 0]));
  }
  // a step back where that brings the cameras into sight
  const eyes = views.map((v) => v.pose.eye);
  const back = [1, 1.1, 1.2, 1.3, 1.4].find((factor) => inSight(eyes, seenFrom(factor * distance), 0.02) === 1);
  orbit.standAt(seenFrom(distance * (back ?? 1)), target, duration);
}

// -- picking ------------------------------------------------------------------------------------

function cameraAt(x, y) {
  if (orbit.through() || !($("frusta").checked || $("photos").checked)) return -1;
  const { pose, lens } = orbit.now(performance.now());
  const reach = reaches();
  const [first, last] = frames();
  let best = [Infinity, -1];
  views.forEach((view, i) => {
    const corners = frustum(view, reach[i]).corners.map((c) => onScreen(c, pose, lens, canvas.clientWidth, canvas.clientHeight));
    if (i < first || i > last || corners.some((c) => c[2] <= 0)) return;
    const sides = corners.map((a, k) => {
      const b = corners[(k + 1) % 4];
      return (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) > 0;
    });
    const depth = Math.min(...corners.map((c) => c[2]));
    if (sides.every((s) => s === sides[0]) && depth < best[0]) best = [depth, i];
  });
  return best[1];
}

// The nearest of the points that are shown within a few pixels, or null.
function pointAt(x, y) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const { pose, lens } = orbit.now(performance.now());
  const m = clipMatrix(pose, lens, 1, 2);
  const shown = filter();
  let best = [Infinity, null];
  for (let i = 0; i < points.count; i++) {
    if (!shown(i)) continue;
    const [px, py, pz] = points.place.subarray(4 * i, 4 * i + 3);
    const w = m[3] * px + m[7] * py + m[11] * pz + m[15];
    if (w <= 0 || w >= best[0]) continue;
    const u = ((m[0] * px + m[4] * py + m[8] * pz + m[12]) / w + 1) * 0.5 * width;
    const v = (1 - (m[1] * px + m[5] * py + m[9] * pz + m[13]) / w) * 0.5 * height;
    if (Math.hypot(u - x, v - y) < 8) best = [w, [px, py, pz]];
  }
  return best[1];
}

// -- views --------------------------------------------------------------------------------------

const depth = createDepth(views);
const inDepth = () => !$("depth-panel").hidden;

function select(view, duration = 700) {
  selected = clamp(view, 0, views.length - 1);
  markSelected();
  const button = $("strip").children[selected].firstChild;
  const [left, width] = [button.offsetLeft - $("strip").offsetLeft, $("strip").clientWidth];
  $("strip").scrollTo({ left: left - width / 2 + button.offsetWidth / 2 });
  showFilters();
  if (!$("about-panel").hidden) open(cloud ? "points" : "depth");
  if (inDepth()) depth.show(selected);
  else if (cloud) {
    orbit.lookThrough(views[selected], duration);
    showThrough();
    sharpen(selected);
  }
}

function markSelected() {
  for (const [i, item] of [...$("strip").children].entries()) item.firstChild.setAttribute("aria-current", i === selected);
}

async function sharpen(view) {
  const image = new Image();
  image.src = photoSource(view);
  await image.decode();
  if (view === selected) cloud.setSharpPhoto(view, image);
  redraw();
}

function showThrough() {
  const view = orbit.through();
  $("through").hidden = !view;
  if (view) Object.assign($("through-name"), { textContent: view.name, title: view.name });
}

function fillStrip() {
  views.forEach((view, i) => {
    const image = Object.assign(new Image(), { src: photoSource(i), alt: "", loading: "lazy", decoding: "async" });
    const number = Object.assign(document.createElement("span"), { textContent: i + 1 });
    const button = Object.assign(document.createElement("button"), { title: view.name });
    button.setAttribute("aria-label", `View ${i + 1}: ${view.name}`);
    button.append(image, number);
    button.addEventListener("click", () => select(i));
    const item = document.createElement("li");
    item.append(button);
    $("strip").append(item);
  });
}

async function loadPhotos() {
  for (const [i] of views.entries()) {
    const image = new Image();
    image.src = photoSource(i);
    await image.decode();
    cloud.setPhoto(i, image);
    redraw();
  }
}

// -- about --------------------------------------------------------------------------------------

function listOf(facts) {
  const list = document.createElement("dl");
  for (const [name, value] of Object.entries(facts)) {
    const term = Object.assign(document.createElement("dt"), { textContent: name });
    const entry = document.createElement("dd");
    if (Array.isArray(value) && value.every((v) => typeof v !== "object")) entry.textContent = value.join(", ");
    else if (value !== null && typeof value === "object") entry.append(listOf(value));
    else entry.textContent = typeof value === "number" && !Number.isInteger(value) ? brief(value) : String(value ?? "none");
    list.append(term, entry);
  }
  return list;
}

function fillAbout() {
  const size = (pair) => pair.join(" \u00d7 ");
  const parts = {
    Scene: {
      Views: views.length,
      "Network image": `${size(scene.size)} pixels`,
      "Pictures here": `${size(scene.pictureSize)} pixels${scene.pictureSize[0] < scene.size[0] ? ", scaled down to keep this page small" : ""}`,
      Points: `${grouped(scene.points.count)}, from ${scene.points.source === "head" ? "the point head" : "the depth maps"}${scene.points.mask.length ? `, without ${scene.points.mask.join(", ")}` : ""}`,
      Precision: `points to ${brief(0.87 * scene.points.step)} units, depth to ${Number((50 * scene.depth.step).toPrecision(2))}\u2009%, confidence in 256 steps`,
    },
    Conventions: {
      World: "camera frame of the first view, as far as the model learned it",
      Unit: scene.unit,
      Camera: "x right, y down, z forward (OpenCV)",
      Depth: "z in the camera frame",
      Confidence: "larger is surer; no unit",
      Pixel: "(0, 0) is the center of the first pixel",
    },
    Keys: {
      "Arrows": "turn, with Shift move; in Depth change the view",
      "+ and \u2212": "zoom",
      "N and P": "next and previous view",
      "C": "show or hide cameras",
      "Escape": "leave the camera",
      "Home": "back to the start",
      "1, 2, 3": "Points, Depth, About",
    },
    Run: scene.report,
    Views: Object.fromEntries(views.map((v, i) => [`${i + 1}`, `${v.name} (${size(v.source)})`])),
  };
  for (const [heading, facts] of Object.entries(parts)) {
    if (!Object.keys(facts).length) continue;
    const part = document.createElement("div");
    part.append(Object.assign(document.createElement("h2"), { textContent: heading }), listOf(facts));
    $("about").append(part);
  }
}

// -- controls -----------------------------------------------------------------------------------

const tabs = ["points", "depth", "about"];

function open(tab) {
  for (const name of tabs) {
    $(`${name}-panel`).hidden = name !== tab;
    $(`tab-${name}`).setAttribute("aria-selected", name === tab);
    $(`tab-${name}`).tabIndex = name === tab ? 0 : -1;
  }
  if (tab === "depth") depth.show(selected);
  redraw();
}

for (const [i, tab] of tabs.entries()) {
  $(`tab-${tab}`).addEventListener("click", () => open(tab));
  $(`tab-${tab}`).addEventListener("keydown", (event) => {
    const step = { ArrowLeft: 2, ArrowRight: 1 }[event.key];
    if (!step) return;
    open(tabs[(i + step) % 3]);
    $(`tab-${tabs[(i + step) % 3]}`).focus();
    event.stopPropagation();
  });
}
for (const choice of document.querySelectorAll("[name=coloring]")) choice.addEventListener("change", colorPoints);
$("threshold").addEventListener("input", showFilters);
$("reach").addEventListener("input", showCameras);
$("size").addEventListener("input", () => {
  $("size-value").textContent = `\u00d7\u2009${(2 ** $("size").value).toFixed(2)}`;
  redraw();
});
for (const id of ["frusta", "photos", "overlay"]) $(id).addEventListener("input", redraw);
for (const id of ["only", "first", "last", ...backgrounds.map((name) => `hide-${name}`)]) $(id).addEventListener("input", showFilters);
$("reset").addEventListener("click", () => startView(700));
$("leave").addEventListener("click", () => startView(700));
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("settings").addEventListener("click", () => {
  const isOpen = $("controls").classList.toggle("open");
  $("settings").setAttribute("aria-expanded", isOpen);
  $("settings").textContent = isOpen ? "Close" : "Settings";
  document.body.classList.toggle("sheet", isOpen);
});
$("scrub").max = views.length - 1;
$("scrub").addEventListener("input", () => select(Number($("scrub").value)));
$("previous").addEventListener("click", () => select(selected - 1));
$("next").addEventListener("click", () => select(selected + 1));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.target instanceof HTMLInputElement && event.key.startsWith("Arrow")) return;
  const cameras = [$("frusta"), $("photos")];
  const actions = {
    n: () => select(selected + 1),
    p: () => select(selected - 1),
    c: () => {
      const on = !cameras.some((box) => box.checked);
      for (const box of cameras) box.checked = on;
      redraw();
    },
    Escape: () => orbit.through() && startView(700),
    Home: () => startView(700),
    1: () => open("points"),
    2: () => open("depth"),
    3: () => open("about"),
    ...(inDepth() && { ArrowLeft: () => select(selected - 1), ArrowRight: () => select(selected + 1) }),
  };
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

// -- start --------------------------------------------------------------------------------------

async function start() {
  document.documentElement.style.setProperty("--aspect", scene.size[0] / scene.size[1]);
  $("summary").textContent = `${views.length} view${views.length > 1 ? "s" : ""} \u00b7 ${scene.size.join(" \u00d7 ")} pixels \u00b7 ${grouped(scene.points.count)} points`;
  $("threshold").value = Math.min(99, Math.round(scene.points.percentile));
  for (const name of backgrounds) $(`hide-${name}`).parentElement.hidden = !(scene.points.backgrounds[name] > 0.03 * scene.points.count);
  for (const id of ["first", "last"]) $(id).max = views.length - 1;
  $("last").value = views.length - 1;
  $("frames").hidden = views.length < 2;
  $("size-value").textContent = "\u00d7\u20091.00";
  fillBar($("confidence-bar"), [0, 128, 255].map((level) => scene.points.confidence[level]));
  fillStrip();
  markSelected();
  fillAbout();
  followSystem();
  const [, tab, view] = location.hash.match(/^#(points|depth|about)(?:=(\d+))?$/) ?? [];
  if (!globalThis.DecompressionStream) {
    complain("This browser is too old to unpack the data: it needs Chrome 80, Firefox 113, Safari 16.4 or newer.");
    return;
  }
  if (tab) open(tab);
  if (cloud) {
    new ResizeObserver(redraw).observe(canvas);
    canvas.addEventListener("webglcontextlost", () => complain("The graphics of this page were lost; reload it."));
    canvas.addEventListener("pointermove", (event) => {
      if (!event.buttons) canvas.classList.toggle("over-camera", cameraAt(event.offsetX, event.offsetY) >= 0);
    });
    const tap = (x, y) => cameraAt(x, y) >= 0 && select(cameraAt(x, y));
    listen(canvas, orbit, tap, (x, y) => pointAt(x, y) && orbit.setPivot(pointAt(x, y)));
    await loadPoints();
    showFilters();
    startView(0);
    loadPhotos().then(() => document.documentElement.classList.add("complete"));
  } else {
    $("loading").textContent = "The points need WebGL 2, which this browser does not offer or has switched off. Depth and About work without it.";
    $("controls").hidden = true;
    if (!tab) open("depth");
    document.documentElement.classList.add("complete");
  }
  if (view !== undefined) select(Number(view), 0);
  else showFilters();
}
start();

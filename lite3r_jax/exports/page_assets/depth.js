// Photo, depth and confidence of one view side by side.

// Two numbers or more at even distances below a strip of the map's colors.
function fillBar(bar, numbers, reversed = false) {
  const colors = mapColors.filter((_, i) => i % 15 === 0).map((c) => `rgb(${c})`);
  const strip = document.createElement("i");
  strip.style.background = `linear-gradient(to ${reversed ? "left" : "right"}, ${colors})`;
  const row = document.createElement("div");
  for (const number of numbers) {
    row.append(Object.assign(document.createElement("span"), { textContent: brief(number) }));
  }
  bar.replaceChildren(strip, row);
}

function createDepth(views) {
  const [width, height] = scene.pictureSize;
  const cache = new Map(); // the last views that were looked at
  const photo = $("depth-photo");
  const maps = [$("depth-map"), $("confidence-map")];
  const frames = [...document.querySelectorAll("#depth-panel .frame")];
  const crosses = frames.map((frame) => {
    const cross = Object.assign(document.createElement("i"), { className: "cross", hidden: true });
    frame.append(cross);
    return cross;
  });
  let shown = -1;
  let spot = null; // [x, y] in pixels of the pictures
  for (const map of maps) [map.width, map.height] = [width, height];
  fillBar($("level-bar"), [0, 64, 128, 192, 255].map((level) => scene.depth.confidence[level]));

  function load(view) {
    if (!cache.has(view)) {
      cache.set(view, unpack(`maps-${view}`, width * height, [3, 2]));
      if (cache.size > 8) cache.delete(cache.keys().next().value);
    }
    return cache.get(view);
  }

  // Code 0 is "no depth".
  const depthOf = (code) => Math.exp(scene.depth.low + (code - 1) * scene.depth.step);

  async function show(view) {
    shown = view;
    photo.src = photoSource(view);
    photo.alt = views[view].name;
    $("depth-name").textContent = views[view].name;
    $("scrub").value = view;
    $("scrub").setAttribute("aria-valuetext", `View ${view + 1}: ${views[view].name}`);
    const [codes, levels] = await load(view);
    if (shown !== view) return;
    const all = document.querySelector("[name=range]:checked").value === "all";
    const near = all ? Math.min(...views.map((v) => v.depth[0])) : views[view].depth[0];
    const far = all ? Math.max(...views.map((v) => v.depth[2])) : views[view].depth[2];
    fillBar($("depth-bar"), [0, 0.25, 0.5, 0.75, 1].map((t) => near + t * (far - near)), true);
    const span = far - near || 1;
    paint(maps[0], (i) => codes[i] && mapColors[Math.round(255 * (1 - clamp((depthOf(codes[i]) - near) / span, 0, 1)))]);
    paint(maps[1], (i) => codes[i] && mapColors[levels[i]]);
    read();
  }

  function paint(map, colorOf) {
    const context = map.getContext("2d");
    const image = context.createImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      const color = colorOf(i);
      if (!color) continue;
      image.data.set(color, 4 * i);
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  async function read() {
    for (const cross of crosses) {
      cross.hidden = !spot;
      if (spot) [cross.style.left, cross.style.top] = [`${(100 * (spot[0] + 0.5)) / width}%`, `${(100 * (spot[1] + 0.5)) / height}%`];
    }
    const view = shown;
    if (!spot) {
      $("readout").textContent = "Point at a picture to read depth and confidence.";
      return;
    }
    const [codes, levels] = await load(view);
    if (view !== shown || !spot) return;
    const i = spot[1] * width + spot[0];
    const [x, y] = [(spot[0] + 0.5) * (scene.size[0] / width) - 0.5, (spot[1] + 0.5) * (scene.size[1] / height) - 0.5];
    const depth = codes[i] ? brief(depthOf(codes[i])) : "none";
    $("readout").textContent = `Pixel ${Math.round(x)}, ${Math.round(y)}   depth ${depth}   confidence ${brief(scene.depth.confidence[levels[i]])} or more`;
  }

  for (const frame of frames) {
    const point = (event) => {
      const box = frame.getBoundingClientRect();
      const x = Math.floor(((event.clientX - box.left) / box.width) * width);
      const y = Math.floor(((event.clientY - box.top) / box.height) * height);
      spot = [clamp(x, 0, width - 1), clamp(y, 0, height - 1)];
      read();
    };
    frame.addEventListener("pointermove", point);
    frame.addEventListener("pointerdown", point);
  }
  for (const choice of document.querySelectorAll("[name=range]")) {
    choice.addEventListener("change", () => show(shown));
  }
  return { show };
}

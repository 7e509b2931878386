// Points, cameras and photos with WebGL 2.

const POINT_VERTEX = `#version 300 es
layout(location = 0) in vec4 place;  // center, and the width of a pixel of its view there
layout(location = 1) in vec3 tint;
layout(location = 2) in vec3 belongs;  // confidence level, view, backgrounds as bits
uniform mat4 clip;
uniform float focal, size, level;  // size: the radius in such pixels
uniform vec2 frames;  // first and last view
uniform int hidden;  // backgrounds as bits
out vec3 color;
out float width;
void main() {
  color = tint;
  gl_Position = clip * vec4(place.xyz, 1.0);
  width = clamp(2.0 * size * place.w * focal / gl_Position.w, 1.5, 96.0);
  gl_PointSize = width;
  bool shown = belongs.x >= level && belongs.y >= frames.x && belongs.y <= frames.y;
  if (!shown || (int(belongs.z) & hidden) != 0) gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
}`;

const POINT_FRAGMENT = `#version 300 es
precision mediump float;
in vec3 color;
in float width;
out vec4 pixel;
void main() {
  if (width > 3.0 && length(gl_PointCoord - 0.5) > 0.5) discard;
  pixel = vec4(color, 1.0);
}`;

// A line is two triangles; `corner` says which end and which side of the line a vertex is.
const LINE_VERTEX = `#version 300 es
layout(location = 0) in vec3 start;
layout(location = 1) in vec3 end;
layout(location = 2) in vec3 corner;  // 0 or 1, -1 or 1, width in pixels
layout(location = 3) in vec3 tint;
uniform mat4 clip;
uniform vec2 screen;
uniform float near;
out vec3 color;
void main() {
  vec4 a = clip * vec4(start, 1.0), b = clip * vec4(end, 1.0);
  if (a.w < near && b.w > near) a = mix(a, b, (near - a.w) / (b.w - a.w));
  else if (b.w < near && a.w > near) b = mix(b, a, (near - b.w) / (a.w - b.w));
  vec2 along = normalize((b.xy / b.w - a.xy / a.w) * screen + vec2(1e-9, 0.0));
  gl_Position = corner.x < 0.5 ? a : b;
  gl_Position.xy += vec2(-along.y, along.x) * corner.y * corner.z / screen * gl_Position.w;
  color = tint;
}`;

const LINE_FRAGMENT = `#version 300 es
precision mediump float;
in vec3 color;
out vec4 pixel;
void main() { pixel = vec4(color, 1.0); }`;

const PHOTO_VERTEX = `#version 300 es
layout(location = 0) in vec3 place;
layout(location = 1) in vec2 texture_place;
uniform mat4 clip;
out vec2 spot;
void main() {
  spot = texture_place;
  gl_Position = clip * vec4(place, 1.0);
}`;

const PHOTO_FRAGMENT = `#version 300 es
precision mediump float;
in vec2 spot;
uniform sampler2D photo;
uniform float opacity;
out vec4 pixel;
void main() { pixel = vec4(texture(photo, spot).rgb, opacity); }`;

// The corners of a view's photo on its image plane, clockwise from the top left, and its center.
function frustum(view, reach) {
  const [fx, fy, cx, cy] = view.intrinsics;
  const { eye, turn } = view.pose;
  const [x1, y1, x2, y2] = view.crop; // edges of pixels, whose centers are at integers
  const corners = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]].map(([x, y]) =>
    add(eye, rotate(turn, scale([(x - 0.5 - cx) / fx, (y - 0.5 - cy) / fy, 1], reach))),
  );
  return { eye, corners };
}

const SELECTED = [1, 0.62, 0.2]; // the page's accent

// Null where the browser has no WebGL 2.
function createCloud(canvas, views, size) {
  const gl = canvas.getContext("webgl2", { antialias: true, powerPreference: "high-performance" });
  if (!gl) return null;

  function program(vertex, fragment, names) {
    const linked = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(linked, shader);
    }
    gl.linkProgram(linked);
    if (!gl.getProgramParameter(linked, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(linked));
    return { linked, ...Object.fromEntries(names.map((n) => [n, gl.getUniformLocation(linked, n)])) };
  }

  // `layout`: [components, type, normalized, stride, offset] of each location.
  function buffer(target, content, layout, first = 0, usage = gl.STATIC_DRAW) {
    gl.bindBuffer(gl.ARRAY_BUFFER, target);
    gl.bufferData(gl.ARRAY_BUFFER, content, usage);
    layout.forEach(([components, type, normalized, stride, offset], i) => {
      gl.enableVertexAttribArray(first + i);
      gl.vertexAttribPointer(first + i, components, type, normalized, stride, offset);
    });
  }

  const points = program(POINT_VERTEX, POINT_FRAGMENT, ["clip", "focal", "size", "level", "frames", "hidden"]);
  const lines = program(LINE_VERTEX, LINE_FRAGMENT, ["clip", "screen", "near"]);
  const photos = program(PHOTO_VERTEX, PHOTO_FRAGMENT, ["clip", "opacity"]);
  const arrays = [0, 1, 2].map(() => gl.createVertexArray());
  const [placeBuffer, tintBuffer, belongBuffer, lineBuffer, photoBuffer] = Array.from({ length: 5 }, () => gl.createBuffer());
  const textures = views.map(() => null);
  let sharp = { view: -1, texture: null }; // the one photo that is looked through, at full size
  let pointCount = 0;
  let lineCount = 0;

  gl.enable(gl.DEPTH_TEST);
  gl.depthFunc(gl.LEQUAL);
  gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);

  function setPoints(place, belongs) {
    gl.bindVertexArray(arrays[0]);
    buffer(placeBuffer, place, [[4, gl.FLOAT, false, 16, 0]]);
    buffer(belongBuffer, belongs, [[3, gl.UNSIGNED_SHORT, false, 8, 0]], 2);
    pointCount = place.length / 4;
  }

  function setColors(rgb) {
    gl.bindVertexArray(arrays[0]);
    buffer(tintBuffer, rgb, [[3, gl.UNSIGNED_BYTE, true, 3, 0]], 1);
  }

  // `frames`: the first and the last view whose camera is shown.
  function setCameras(reach, selected, frames) {
    const edges = [];
    const quads = [];
    views.forEach((view, i) => {
      const { eye, corners } = frustum(view, reach[i]);
      const [x1, y1, x2, y2] = view.crop.map((edge, k) => edge / size[k % 2]);
      const spots = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]];
      for (const k of [0, 1, 2, 0, 2, 3]) quads.push(...corners[k], ...spots[k]);
      if (i < frames[0] || i > frames[1]) return;
      const color = i === selected ? SELECTED : view.color.map((v) => v / 255);
      const width = i === selected ? 1.6 : 0.9;
      const pairs = corners.flatMap((c, k) => [[eye, c], [c, corners[(k + 1) % 4]]]);
      for (const [a, b] of pairs) {
        for (const [end, side] of [[0, -1], [0, 1], [1, 1], [0, -1], [1, 1], [1, -1]]) {
          edges.push(...a, ...b, end, end ? -side : side, width, ...color);
        }
      }
    });
    gl.bindVertexArray(arrays[1]);
    const f = gl.FLOAT;
    buffer(lineBuffer, new Float32Array(edges), [[3, f, false, 48, 0], [3, f, false, 48, 12], [3, f, false, 48, 24], [3, f, false, 48, 36]], 0, gl.DYNAMIC_DRAW);
    gl.bindVertexArray(arrays[2]);
    buffer(photoBuffer, new Float32Array(quads), [[3, f, false, 20, 0], [2, f, false, 20, 12]], 0, gl.DYNAMIC_DRAW);
    lineCount = edges.length / 12;
  }

  function upload(texture, image) {
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, image);
    gl.generateMipmap(gl.TEXTURE_2D);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
    return texture;
  }

  function setPhoto(view, image) {
    const small = document.createElement("canvas");
    const zoom = Math.min(1, 256 / Math.max(image.naturalWidth, image.naturalHeight));
    small.width = Math.max(1, image.naturalWidth * zoom);
    small.height = Math.max(1, image.naturalHeight * zoom);
    small.getContext("2d").drawImage(image, 0, 0, small.width, small.height);
    textures[view] = upload(gl.createTexture(), small);
  }

  function setSharpPhoto(view, image) {
    sharp = { view, texture: upload(sharp.texture ?? gl.createTexture(), image) };
  }

  function drawPhoto(view, texture, opacity) {
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.uniform1f(photos.opacity, opacity);
    gl.drawArrays(gl.TRIANGLES, 6 * view, 6);
  }

  // `look`: {pose, lens, near, far}; {background, density} of the screen; {size, level, frames, hidden} of
  // the points; {lines, photos}: whether they are shown; {overlay: [view, opacity]}
  function draw(look) {
    const { width, height } = canvas;
    const clip = clipMatrix(look.pose, look.lens, look.near, look.far);
    gl.viewport(0, 0, width, height);
    gl.clearColor(...look.background, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.disable(gl.BLEND);

    gl.useProgram(points.linked);
    gl.bindVertexArray(arrays[0]);
    gl.uniformMatrix4fv(points.clip, false, clip);
    gl.uniform1f(points.focal, (look.lens[1] * height) / 2);
    gl.uniform1f(points.size, look.size);
    gl.uniform1f(points.level, look.level);
    gl.uniform2f(points.frames, ...look.frames);
    gl.uniform1i(points.hidden, look.hidden);
    gl.drawArrays(gl.POINTS, 0, pointCount);

    if (look.lines) {
      gl.useProgram(lines.linked);
      gl.bindVertexArray(arrays[1]);
      gl.uniformMatrix4fv(lines.clip, false, clip);
      gl.uniform2f(lines.screen, width / look.density, height / look.density);
      gl.uniform1f(lines.near, look.near);
      gl.drawArrays(gl.TRIANGLES, 0, lineCount);
    }

    gl.useProgram(photos.linked);
    gl.bindVertexArray(arrays[2]);
    gl.uniformMatrix4fv(photos.clip, false, clip);
    if (look.photos) {
      views.forEach((_, view) => {
        const shown = view >= look.frames[0] && view <= look.frames[1];
        if (shown && textures[view]) drawPhoto(view, textures[view], 1);
      });
    }
    const [view, opacity] = look.overlay;
    const texture = view === sharp.view ? sharp.texture : textures[view];
    if (texture && opacity > 0) {
      gl.enable(gl.BLEND);
      gl.disable(gl.DEPTH_TEST);
      drawPhoto(view, texture, opacity);
      gl.enable(gl.DEPTH_TEST);
    }
  }

  return { setPoints, setColors, setCameras, setPhoto, setSharpPhoto, draw };
}

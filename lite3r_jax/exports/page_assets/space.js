// Vectors [x, y, z], quaternions [x, y, z, w] and projections.
//
// Cameras follow OpenCV: x right, y down, z forward. A pose is {eye, turn}: the center of the camera
// and the rotation that takes directions of the camera to the world.

const add = (a, b) => [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
const sub = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
const scale = (a, k) => [a[0] * k, a[1] * k, a[2] * k];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const length = (a) => Math.hypot(a[0], a[1], a[2]);
const unit = (a) => scale(a, 1 / (length(a) || 1));
const mix = (a, b, t) => a.map((x, i) => x + (b[i] - x) * t);
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const cross = (a, b) => [
  a[1] * b[2] - a[2] * b[1],
  a[2] * b[0] - a[0] * b[2],
  a[0] * b[1] - a[1] * b[0],
];

function turnAbout(axis, angle) {
  const [x, y, z] = scale(unit(axis), Math.sin(angle / 2));
  return [x, y, z, Math.cos(angle / 2)];
}

// The rotation b, then a.
function multiply(a, b) {
  const [ax, ay, az, aw] = a;
  const [bx, by, bz, bw] = b;
  const q = [
    aw * bx + ax * bw + ay * bz - az * by,
    aw * by - ax * bz + ay * bw + az * bx,
    aw * bz + ax * by - ay * bx + az * bw,
    aw * bw - ax * bx - ay * by - az * bz,
  ];
  const size = Math.hypot(...q);
  return q.map((v) => v / size);
}

function rotate(q, v) {
  const axis = q.slice(0, 3);
  const t = scale(cross(axis, v), 2);
  return add(add(v, scale(t, q[3])), cross(axis, t));
}

function slerp(a, b, t) {
  let cosine = a.reduce((sum, v, i) => sum + v * b[i], 0);
  const end = cosine < 0 ? b.map((v) => -v) : b;
  cosine = Math.min(Math.abs(cosine), 1);
  const angle = Math.acos(cosine);
  if (angle < 1e-4) return end;
  const p = Math.sin((1 - t) * angle) / Math.sin(angle);
  const q = Math.sin(t * angle) / Math.sin(angle);
  return a.map((v, i) => v * p + end[i] * q);
}

// Of a camera whose axes right, down, forward are given in the world.
function turnFromAxes(right, down, forward) {
  const [m00, m10, m20] = right;
  const [m01, m11, m21] = down;
  const [m02, m12, m22] = forward;
  // four times one component times (x, y, z, w); the largest component is the safe divisor
  const rows = [
    [1 + m00 - m11 - m22, m10 + m01, m02 + m20, m21 - m12],
    [m10 + m01, 1 - m00 + m11 - m22, m21 + m12, m02 - m20],
    [m02 + m20, m21 + m12, 1 - m00 - m11 + m22, m10 - m01],
    [m21 - m12, m02 - m20, m10 - m01, 1 + m00 + m11 + m22],
  ];
  const row = rows.reduce((best, r, i) => (r[i] > best[0] ? [r[i], r] : best), [-1, rows[3]])[1];
  const size = Math.hypot(...row);
  return row.map((v) => v / size);
}

function lookAt(eye, target, up) {
  const forward = unit(sub(target, eye));
  let right = cross(forward, up);
  if (length(right) < 1e-6) right = cross(forward, [0.3, 0.5, 0.8]);
  right = unit(right);
  return { eye, turn: turnFromAxes(right, cross(forward, right), forward) };
}

// The pose of a view, from its world-to-camera matrix in rows.
function poseOf(e) {
  const rows = [e.slice(0, 3), e.slice(4, 7), e.slice(8, 11)];
  const shift = [e[3], e[7], e[11]];
  const eye = [0, 1, 2].map((i) => -(rows[0][i] * shift[0] + rows[1][i] * shift[1] + rows[2][i] * shift[2]));
  return { eye, turn: turnFromAxes(...rows) };
}

// How directions become positions on screen: with a point (X, Y, Z) of the camera, from -1 to 1,
// x = sx X / Z + ox to the right and y = sy Y / Z + oy downwards.
//
// `focal` is in units of the shorter side of the screen.
function freeLens(focal, width, height) {
  const shorter = Math.min(width, height);
  return [(2 * focal * shorter) / width, (2 * focal * shorter) / height, 0, 0];
}

// The lens of a view, its image as large as the screen allows; pixel centers are at integers.
function viewLens([fx, fy, cx, cy], [imageWidth, imageHeight], width, height) {
  const zoom = Math.min(width / imageWidth, height / imageHeight);
  const [kx, ky] = [(2 * zoom) / width, (2 * zoom) / height];
  return [kx * fx, ky * fy, kx * (cx + 0.5 - imageWidth / 2), ky * (cy + 0.5 - imageHeight / 2)];
}

// World to WebGL's clip space, column by column.
function clipMatrix({ eye, turn }, [sx, sy, ox, oy], near, far) {
  const axes = [[1, 0, 0], [0, 1, 0], [0, 0, 1]].map((axis) => rotate(turn, axis));
  const shift = axes.map((axis) => -dot(axis, eye));
  const [right, down, forward] = axes.map((axis, i) => [...axis, shift[i]]);
  const a = (far + near) / (far - near);
  const b = (-2 * far * near) / (far - near);
  const rows = [
    right.map((v, i) => sx * v + ox * forward[i]),
    down.map((v, i) => -sy * v - oy * forward[i]),
    forward.map((v, i) => a * v + (i === 3 ? b : 0)),
    forward,
  ];
  return new Float32Array([0, 1, 2, 3].flatMap((i) => rows.map((row) => row[i])));
}

// World to pixels of the screen: [x, y, depth]; behind the camera the depth is not positive.
function onScreen(point, { eye, turn }, [sx, sy, ox, oy], width, height) {
  const [qx, qy, qz, qw] = turn;
  const [x, y, z] = rotate([-qx, -qy, -qz, qw], sub(point, eye));
  return [((sx * x) / z + ox + 1) * 0.5 * width, ((sy * y) / z + oy + 1) * 0.5 * height, z];
}

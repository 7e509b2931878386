// The camera that the points are seen with, and how mouse, touch and keys move it.

const FREE_FOCAL = 0.95; // of the shorter side: a field of view of 55 degrees
const STEEPEST = 0.05; // radians between the line of sight and straight up or down

// `changed` is called when the picture has to be drawn again, `left` when a view is left.
function createOrbit(canvas, up, changed, left) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let pose = { eye: [0, 0, 0], turn: [0, 0, 0, 1] };
  let focal = FREE_FOCAL;
  let pivot = [0, 0, 1];
  let through = null; // the view that is looked through: {pose, intrinsics, ...}
  let flight = null; // {start, duration, pose, lens}

  const screen = () => [canvas.clientWidth || 1, canvas.clientHeight || 1];
  const steadyLens = () =>
    through ? viewLens(through.intrinsics, scene.size, ...screen()) : freeLens(focal, ...screen());

  // Pose and lens for this moment, and whether they are still on their way.
  function now(time) {
    const lens = steadyLens();
    if (!flight) return { pose, lens, moving: false };
    const part = clamp((time - flight.start) / flight.duration, 0, 1);
    const t = part * part * (3 - 2 * part);
    if (part === 1) flight = null;
    if (t === 1) return { pose, lens, moving: false };
    return {
      pose: { eye: mix(flight.pose.eye, pose.eye, t), turn: slerp(flight.pose.turn, pose.turn, t) },
      lens: mix(flight.lens, lens, t),
      moving: true,
    };
  }

  function fly(from, duration = 700) {
    flight = calm.matches ? null : { start: performance.now(), duration, ...from };
    changed();
  }

  function standAt(target, towards, duration) {
    const from = now(performance.now());
    [pose, pivot, through, focal] = [target, towards, null, FREE_FOCAL];
    left();
    if (duration) fly(from, duration);
    else {
      flight = null;
      changed();
    }
  }

  function lookThrough(view, duration = 700) {
    const from = now(performance.now());
    [pose, through] = [view.pose, view];
    pivot = add(pose.eye, rotate(pose.turn, [0, 0, view.depth[1]]));
    if (duration) fly(from, duration);
    else {
      flight = null;
      changed();
    }
  }

  // Before the first move away from a view: go on from where it is seen, with an ordinary lens.
  function release() {
    const current = now(performance.now());
    if (flight) pose = current.pose;
    flight = null;
    if (!through) return;
    const [width, height] = screen();
    focal = (current.lens[1] * height) / 2 / Math.min(width, height);
    through = null;
    left();
    fly({ pose, lens: current.lens }, 200);
  }

  function turnBy(dx, dy) {
    release();
    const forward = rotate(pose.turn, [0, 0, 1]);
    const right = rotate(pose.turn, [1, 0, 0]);
    const steep = Math.acos(clamp(dot(forward, up), -1, 1)); // 0: straight up
    const pitch = clamp(-dy, STEEPEST - Math.PI + steep, steep - STEEPEST);
    const move = multiply(turnAbout(up, -dx), turnAbout(right, Number.isFinite(pitch) ? pitch : 0));
    pose = { eye: add(pivot, rotate(move, sub(pose.eye, pivot))), turn: multiply(move, pose.turn) };
    changed();
  }

  function slideBy(dx, dy) {
    release();
    const [width, height] = screen();
    const distance = length(sub(pose.eye, pivot));
    const step = distance / (focal * Math.min(width, height));
    const shift = rotate(pose.turn, [-dx * step, -dy * step, 0]);
    pose = { ...pose, eye: add(pose.eye, shift) };
    pivot = add(pivot, shift);
    changed();
  }

  function zoomBy(factor) {
    release();
    const arm = sub(pose.eye, pivot);
    pose = { ...pose, eye: add(pivot, scale(arm, clamp(length(arm) * factor, 1e-4, 1e6) / (length(arm) || 1))) };
    changed();
  }

  function setPivot(point) {
    release();
    const from = now(performance.now());
    pivot = point;
    const forward = rotate(pose.turn, [0, 0, 1]);
    const distance = Math.max(dot(sub(point, pose.eye), forward), 1e-3);
    pose = { ...pose, eye: sub(point, scale(forward, distance)) };
    fly(from, 400);
  }

  return {
    now, standAt, lookThrough, turnBy, slideBy, zoomBy, setPivot,
    through: () => through,
    pivot: () => pivot,
  };
}

// `tap(x, y)` and `doubleTap(x, y)` get pixels of the canvas.
function listen(canvas, orbit, tap, doubleTap) {
  const pointers = new Map();
  let travelled = 0;
  let lastTap = { time: -1e9, x: 0, y: 0 };
  const spot = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, spot(event));
    travelled = pointers.size > 1 ? Infinity : 0;
  });

  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const [x, y] = spot(event);
    const [dx, dy] = [x - before[0], y - before[1]];
    travelled += Math.abs(dx) + Math.abs(dy);
    if (travelled < 4) return; // a tap may tremble
    if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const was = Math.hypot(before[0] - other[0], before[1] - other[1]);
      const is = Math.hypot(x - other[0], y - other[1]);
      orbit.slideBy(dx / 2, dy / 2);
      orbit.zoomBy(clamp(was / Math.max(is, 1), 0.5, 2));
    } else if (event.shiftKey || event.buttons & 6) {
      orbit.slideBy(dx, dy);
    } else {
      orbit.turnBy(dx * 0.006, dy * 0.006);
    }
    pointers.set(event.pointerId, [x, y]);
  });

  const release = (event) => {
    const known = pointers.delete(event.pointerId);
    if (!known || event.type === "pointercancel" || travelled >= 4 || event.button > 0) return;
    const [x, y] = spot(event);
    const again = event.timeStamp - lastTap.time < 350 && Math.hypot(x - lastTap.x, y - lastTap.y) < 24;
    lastTap = { time: again ? -1e9 : event.timeStamp, x, y };
    if (again) doubleTap(x, y);
    else tap(x, y);
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 16 : 1;
      orbit.zoomBy(Math.exp(clamp(event.deltaY * lines, -200, 200) * (event.ctrlKey ? 0.01 : 0.0015)));
    },
    { passive: false },
  );

  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrows = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (event.key in arrows) {
      const [dx, dy] = arrows[event.key];
      if (event.shiftKey) orbit.slideBy(dx * 30, dy * 30);
      else orbit.turnBy(dx * 0.08, dy * 0.08);
    } else if (event.key === "+" || event.key === "=") orbit.zoomBy(0.88);
    else if (event.key === "-") orbit.zoomBy(1 / 0.88);
    else return;
    event.preventDefault();
  });
}

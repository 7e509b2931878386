"use strict";
(() => {
const $ = (id) => document.getElementById(id);
const ENDED = new Set(["done", "failed", "cancelled"]);
const FORMATS = { // in words; others go by their name
  npz: "Arrays (NPZ)",
  ply: "Points (PLY)",
  glb: "Points and cameras (GLB)",
  colmap: "COLMAP",
  colmap_txt: "COLMAP as text",
  depth_png: "Depth pictures",
  depth_png16: "Depth, 16-bit PNG",
  depth_pfm: "Depth, PFM",
  tum: "Camera path (TUM)",
  html: "Page to look at",
};
let service = null; // what the service offers
let scenes = []; // summaries, the newest first
let files = []; // chosen for the next upload
let shown = ""; // id of the scene that is looked at
let drawn = ""; // what of it stands on the page: id and state
let upload = null; // the request that is under way
let timer = 0;

// -- talking to the service ----------------------------------------------------------------------

async function ask(address, method = "GET") {
  const answer = await fetch(address, { method });
  if (answer.status === 204) return null;
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  return body;
}

function say(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

async function refresh() {
  clearTimeout(timer);
  let wait = 5000;
  try {
    scenes = (await ask("scenes")).scenes;
    if (scenes.some((scene) => !ENDED.has(scene.state))) wait = 1000;
    if ($("message").dataset.lost) {
      delete $("message").dataset.lost;
      say("");
    }
    list();
    await look();
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // what fetch throws without a connection
    $("message").dataset.lost = "yes";
    say("The service does not answer; this page goes on when it does.");
  } finally {
    timer = setTimeout(refresh, document.hidden ? 10000 : wait);
  }
}

// -- the list ------------------------------------------------------------------------------------

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function inWords(scene) {
  if (scene.cancelling) return "is being cancelled";
  if (scene.state === "waiting") return scene.place > 1 ? `waits, number ${scene.place}` : "is next";
  if (scene.state === "running") return scene.progress ? scene.progress.stage : "begins";
  return scene.state;
}

function list() {
  $("empty").hidden = scenes.length > 0;
  const have = new Map([...$("scenes").children].map((item) => [item.dataset.id, item]));
  scenes.forEach((scene, place) => {
    let item = have.get(scene.id);
    if (!item) {
      const picture = element("span", { className: "picture" });
      const words = element("span", {}, element("b", { textContent: scene.name }), element("span", { className: "soft" }));
      item = element("li", {}, element("a", { href: `#${scene.id}` }, picture, words));
      item.dataset.id = scene.id;
    }
    have.delete(scene.id);
    if ($("scenes").children[place] !== item) $("scenes").insertBefore(item, $("scenes").children[place] || null);
    const line = item.querySelector(".soft");
    const when = new Date(scene.created).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    line.textContent = scene.state === "done" || scene.adding ? when : inWords(scene);
    line.classList.toggle("failed", scene.state === "failed");
    item.firstChild.setAttribute("aria-current", String(scene.id === shown));
    const looks = scene.adding ? "done" : scene.state;
    if (item.dataset.state !== looks) {
      item.dataset.state = looks;
      const sign = { waiting: "\u22ef", running: "\u25d4", failed: "!", cancelled: "\u2013" }[looks];
      item.querySelector(".picture").replaceChildren(
        sign || element("img", { src: `scenes/${scene.id}/thumbnail`, alt: "", loading: "lazy" }));
    }
  });
  for (const item of have.values()) item.remove();
}

// -- one scene -----------------------------------------------------------------------------------

function size(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
}

function clock(seconds) {
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

function go() {
  shown = location.hash.slice(1);
  drawn = "";
  $("start").hidden = Boolean(shown);
  $("scene").hidden = !shown;
  document.body.classList.toggle("one", Boolean(shown));
  if (!shown) {
    $("view").hidden = true;
    $("view").removeAttribute("src");
  }
  refresh();
}

async function look() {
  if (!shown) return;
  const summary = scenes.find((scene) => scene.id === shown);
  if (!summary) {
    location.hash = "";
    return;
  }
  running(summary);
  if (drawn === `${summary.id} ${summary.state}`) return;
  let scene;
  try {
    scene = await ask(`scenes/${summary.id}`);
  } catch (error) {
    if (error instanceof TypeError) throw error;
    return; // it was deleted meanwhile
  }
  if (scene.id !== shown) return;
  drawn = `${scene.id} ${scene.state}`;
  whole(scene);
}

function running(scene) {
  const { state, progress } = scene;
  $("cancel").hidden = ENDED.has(state);
  $("cancel").disabled = scene.cancelling;
  $("delete").hidden = state === "running";
  $("state").hidden = state === "done" || Boolean(scene.adding);
  $("adding").textContent = scene.adding ? `${FORMATS[scene.adding] || scene.adding}: ${inWords(scene)}` : scene.error || "";
  $("adding").hidden = !scene.adding && !(state === "done" && scene.error);
  $("more").hidden = state !== "done";
  $("state").classList.toggle("failed", state === "failed");
  let text = inWords(scene);
  text = text[0].toUpperCase() + text.slice(1);
  $("bar").hidden = state !== "running";
  $("bar").removeAttribute("value");
  if (state === "failed") text = scene.error;
  if (state === "running" && progress) {
    if (progress.total) {
      text += `: ${progress.done} of ${progress.total} ${progress.unit}s`;
      $("bar").value = progress.done / progress.total;
    } else if (progress.expected) {
      text += `, ${clock(progress.seconds)} of about ${clock(progress.expected)}`;
      $("bar").value = Math.min(0.97, progress.seconds / progress.expected);
    } else text += `, ${clock(progress.seconds)}`;
  }
  if ($("state-text").textContent !== text) $("state-text").textContent = text;
}

function whole(scene) {
  const done = scene.state === "done";
  const { model, attention, size: side } = scene.settings;
  const took = Object.values(scene.seconds).reduce((sum, each) => sum + each, 0);
  const about = [model];
  if (!done && !scene.adding) about.unshift(`${scene.count} ${scene.count > 1 ? "files" : "file"}`);
  if (attention) about.push(attention);
  if (side) about.push(`size ${side}`);
  if (took) about.push(`${clock(took)} min`);
  $("scene-name").textContent = scene.name;
  $("scene-about").textContent = about.join(", ");
  unsure();
  const page = scene.files.find((file) => file.format === "html");
  $("view").hidden = !page;
  $("scene").classList.toggle("viewing", Boolean(page));
  if (!page) $("view").removeAttribute("src");
  else if ($("view").getAttribute("src") !== page.href.slice(1)) $("view").src = page.href.slice(1);
  $("downloads").hidden = !scene.files.length;
  more(scene);
  $("links").replaceChildren(...scene.files.map((file) => {
    const folder = !file.name.includes(".");
    const name = folder ? `${file.name}.zip` : file.name;
    const link = element("a", { href: `${file.href.slice(1)}?download`, download: name, title: FORMATS[file.format] || "" }, `${name} `);
    link.append(element("small", { textContent: size(file.bytes) }));
    return element("li", {}, link);
  }));
}

function more(scene) {
  const have = new Set(scene.files.map((file) => file.format));
  const left = have.has("npz") ? service.formats.filter((name) => !have.has(name)) : [];
  $("more").replaceChildren(element("option", { value: "", textContent: "More…" }),
    ...left.map((name) => element("option", { value: name, textContent: FORMATS[name] || name })));
  $("more").disabled = !left.length;
}

function unsure() {
  $("delete").textContent = "Delete";
  $("delete").classList.remove("sure");
}

async function act(work) {
  try {
    say("");
    await work();
  } catch (error) {
    say(error instanceof TypeError ? "The service does not answer." : error.message);
  }
  refresh();
}

// -- a new scene ---------------------------------------------------------------------------------

const suffix = (name) => (name.match(/\.[^.]*$/) || [""])[0].toLowerCase();
const isVideo = (file) => service.video_suffixes.includes(suffix(file.name));
const usable = (file) => isVideo(file) || service.photo_suffixes.includes(suffix(file.name));

function add(chosen) {
  if (!service || upload) return;
  const good = [...chosen].filter(usable);
  const bad = chosen.length - good.length;
  const order = new Intl.Collator(undefined, { numeric: true });
  files = [...files, ...good].sort((a, b) => order.compare(a.name, b.name));
  say(bad ? `${bad} of these files ${bad > 1 ? "are" : "is"} neither a photo nor a video by name, and left out.` : "");
  choose();
}

function choose() {
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  const videos = files.filter(isVideo).length;
  const what = videos ? (files.length > 1 ? "files" : "video") : files.length > 1 ? "photos" : "photo";
  $("chosen").hidden = !files.length;
  $("count").textContent = `${files.length} ${what}, ${size(bytes)}`;
  $("previews").replaceChildren(...files.slice(0, 200).map((file) => element("li", { textContent: file.name })));
  $("fps-field").hidden = !videos;
  const limits = service.limits;
  let wrong = "";
  if (videos && files.length > 1) wrong = "A video is a scene of its own: send it alone, or photos only.";
  else if (files.length > limits.photos) wrong = `At most ${limits.photos} photos make a scene here.`;
  else if (bytes > limits.upload_bytes) wrong = `At most ${size(limits.upload_bytes)} make a scene here.`;
  if (wrong) say(wrong);
  $("send").disabled = !files.length || Boolean(wrong) || Boolean(upload);
}

function send(event) {
  event.preventDefault();
  if (!files.length || upload) return;
  const form = new FormData();
  const checked = [...document.querySelectorAll("#formats input:checked")].map((box) => box.value);
  if (!checked.length) return say("Choose at least one kind of files to write.");
  form.append("formats", checked.join(","));
  for (const name of ["name", "model", "attention", "size"]) form.append(name, $(name).value);
  if (files.some(isVideo)) form.append("fps", $("fps").value);
  for (const file of files) form.append("photos", file, file.name);
  say("");
  upload = new XMLHttpRequest();
  upload.upload.onprogress = (e) => {
    if (!e.lengthComputable) return;
    $("sent").value = e.loaded / e.total;
    $("sent-text").textContent = `${size(e.loaded)} of ${size(e.total)}`;
  };
  upload.onload = () => {
    let body = {};
    try { body = JSON.parse(upload.responseText); } catch { /* said below */ }
    const good = upload.status === 202;
    ended();
    if (!good) return say(body.error || "The service did not take the upload.");
    files = [];
    $("name").value = "";
    choose();
    location.hash = body.id;
  };
  upload.onerror = () => { ended(); say("The upload was broken off. It may be larger than the service takes."); };
  upload.onabort = ended;
  upload.open("POST", "scenes");
  upload.send(form);
  $("sending").hidden = false;
  $("sent").value = 0;
  $("sent-text").textContent = "";
  choose();
}

function ended() {
  upload = null;
  $("sending").hidden = true;
  choose();
}

// -- the beginning -------------------------------------------------------------------------------

async function begin() {
  service = await ask("service");
  const { limits } = service;
  $("service").textContent = service.models.join(", ");
  $("model").append(...service.models.map((name) => element("option", { value: name, textContent: name })));
  $("plans").append(...service.attention.map((name) => element("option", { value: name })));
  $("formats").append(...service.formats.map((name) => {
    const box = element("input", { type: "checkbox", value: name, checked: service.default_formats.includes(name) });
    return element("label", {}, box, FORMATS[name] || name);
  }));
  $("files").accept = ["image/*", "video/*", ...service.photo_suffixes, ...service.video_suffixes].join(",");
  $("limits").textContent = `Up to ${limits.photos} photos or one video, ${size(limits.upload_bytes)} in all. They stay on this service until the scene is deleted.`;

  $("files").onchange = () => { add($("files").files); $("files").value = ""; };
  $("clear").onclick = () => { files = []; say(""); choose(); };
  $("form").onsubmit = send;
  $("abort").onclick = () => upload && upload.abort();
  $("new").onclick = () => { location.hash = ""; };
  $("back").onclick = () => { location.hash = ""; };
  $("cancel").onclick = () => act(() => ask(`scenes/${shown}/cancel`, "POST"));
  $("more").onchange = () => $("more").value && act(() => ask(`scenes/${shown}/files/${$("more").value}`, "POST"));
  $("delete").onclick = () => {
    if (!$("delete").classList.contains("sure")) {
      $("delete").textContent = "Delete for good?";
      $("delete").classList.add("sure");
      return;
    }
    const gone = shown;
    act(async () => { await ask(`scenes/${gone}`, "DELETE"); location.hash = ""; });
  };
  addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
  addEventListener("dragleave", () => $("drop").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    if (!event.dataTransfer.files.length) return;
    if (shown) location.hash = "";
    add(event.dataTransfer.files);
  });
  addEventListener("hashchange", go);
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
  go();
}

begin().catch((error) => say(`The service does not answer (${error.message}); load the page again.`));
})();

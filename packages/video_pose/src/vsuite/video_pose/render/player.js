// The player: poses, camera, clock, controls. All names from files reach the document as text only.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const view = at("view"), pen = view.getContext("2d");
const ABSENT = -32768, FIELD_OF_VIEW = 35 * Math.PI / 180;
const rgb = (colour) => `rgb(${colour})`;
const people = data.people.map((person, k) => ({
  name: person.name, shown: true, colour: rgb(data.colours[k % data.colours.length]), places: unpack(person.places),
}));
const state = { frame: 0, playing: false, clock: 0, dark: !matchMedia("(prefers-color-scheme: light)").matches, waiting: false };
const first = { azimuth: 0.45, elevation: 0.26, distance: 1.05 * data.radius / Math.sin(FIELD_OF_VIEW / 2), target: [...data.centre] };
const camera = { ...first, target: [...first.target] };

function unpack(text) {
  const letters = atob(text), bytes = new DataView(new ArrayBuffer(letters.length));
  for (let i = 0; i < letters.length; i++) bytes.setUint8(i, letters.charCodeAt(i));
  return Int16Array.from({ length: letters.length / 2 }, (_, i) => bytes.getInt16(2 * i, true));
}

// Where a joint is, in the unit of the data; null where it is absent.
function place(person, frame, joint) {
  const i = 3 * (frame * data.joints.length + joint);
  if (person.places[i] === ABSENT) return null;
  return [0, 1, 2].map((axis) => person.places[i + axis] / data.scale + data.centre[axis]);
}

// A function from places to [x, y, depth] in CSS pixels; null behind the camera. At azimuth 0 the view is along +y, z is up.
function projector() {
  const { azimuth: a, elevation: e, distance, target } = camera, width = view.clientWidth, height = view.clientHeight;
  const away = [Math.sin(a) * Math.cos(e), Math.cos(a) * Math.cos(e), -Math.sin(e)], right = [Math.cos(a), -Math.sin(a), 0];
  const down = [-Math.sin(a) * Math.sin(e), -Math.cos(a) * Math.sin(e), -Math.cos(e)];
  const focal = Math.min(width, height) / 2 / Math.tan(FIELD_OF_VIEW / 2);
  const along = (axis, p) => axis[0] * p[0] + axis[1] * p[1] + axis[2] * p[2];
  return (point) => {
    const p = point.map((value, k) => value - target[k]), depth = along(away, p) + distance;
    if (depth < 0.02 * distance) return null;
    return [width / 2 + focal * along(right, p) / depth, height / 2 + focal * along(down, p) / depth, depth];
  };
}

function line(a, b, colour, width) {
  if (!a || !b) return;
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.beginPath();
  pen.moveTo(a[0], a[1]);
  pen.lineTo(b[0], b[1]);
  pen.stroke();
}

function drawGround(project, colour) {
  const reach = 8, [x, y] = data.centre.map((value) => Math.round(value / data.step) * data.step);
  for (let i = -reach; i <= reach; i++) for (let j = -reach; j < reach; j++) {
    const fixed = i * data.step, from = j * data.step, to = from + data.step;
    pen.globalAlpha = Math.max(0, 1 - Math.hypot(i, j + 0.5) / reach);
    line(project([x + fixed, y + from, 0]), project([x + fixed, y + to, 0]), colour, 1);
    line(project([x + from, y + fixed, 0]), project([x + to, y + fixed, 0]), colour, 1);
  }
  pen.globalAlpha = 1;
}

function colourOf(person, joint) {
  return at("by").value === "person" ? person.colour : rgb(data.side_colours[data.sides[joint]]);
}

function draw() {
  state.waiting = false;
  const scale = window.devicePixelRatio || 1, style = getComputedStyle(document.documentElement), project = projector();
  [view.width, view.height] = [Math.round(view.clientWidth * scale), Math.round(view.clientHeight * scale)];
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.lineCap = "round";
  drawGround(project, style.getPropertyValue("--line"));
  const parts = [], size = 0.009 * Math.min(view.clientWidth, view.clientHeight) * first.distance;
  for (const person of people) {
    if (!person.shown) continue;
    const joints = data.joints.map((_, joint) => place(person, state.frame, joint)), seen = joints.map((joint) => joint && project(joint));
    const flat = joints.map((joint) => joint && project([joint[0], joint[1], 0]));
    for (const [joint, parent] of data.bones) {
      line(flat[joint], flat[parent], style.getPropertyValue("--shadow"), 4);
      if (seen[joint] && seen[parent]) parts.push({ person, joint, a: seen[joint], b: seen[parent], depth: (seen[joint][2] + seen[parent][2]) / 2 });
    }
    seen.forEach((spot, joint) => { if (spot) parts.push({ person, joint, a: spot, depth: spot[2] * 0.999 }); });
  }
  parts.sort((one, other) => other.depth - one.depth);  // the farthest first
  for (const { person, joint, a, b, depth } of parts) {
    const width = Math.min(Math.max(size / depth, 1.5), 40);
    if (b) line(a, b, colourOf(person, joint), width);
    else {
      pen.fillStyle = colourOf(person, joint);
      pen.beginPath();
      pen.arc(a[0], a[1], 0.8 * width, 0, 2 * Math.PI);
      pen.fill();
    }
  }
  if (at("names").checked) {
    pen.font = "11px system-ui, sans-serif";
    pen.fillStyle = style.getPropertyValue("--ink");
    for (const { joint, a, b } of parts) if (!b) pen.fillText(data.joints[joint].replaceAll("_", " "), a[0] + 7, a[1] + 3);
  }
}

function redraw() {
  if (state.waiting) return;
  state.waiting = true;
  requestAnimationFrame(draw);
}

function go(frame) {
  state.frame = Math.min(Math.max(frame, 0), data.frames - 1);
  at("frame").value = state.frame;
  at("time").textContent = `${state.frame + 1} / ${data.frames}   ${(state.frame / data.fps).toFixed(2)} s`;
  redraw();
}

function jump(frame) {
  state.clock = frame / data.fps;
  go(frame);
}

// Frames follow the clock, not the screen: a slow machine leaves some out and keeps the pace.
function tick(now) {
  if (!state.playing) return;
  state.clock += Math.min((now - state.last) / 1000, 0.25) * Number(at("speed").value);
  state.last = now;
  const length = data.frames / data.fps;
  if (state.clock >= length) {
    if (at("loop").checked) state.clock %= length;
    else { jump(data.frames - 1); play(); return; }
  }
  go(Math.floor(state.clock * data.fps + 1e-6));
  requestAnimationFrame(tick);
}

function play() {
  state.playing = !state.playing;
  at("play").textContent = state.playing ? "Pause" : "Play";
  if (!state.playing) return;
  if (state.frame === data.frames - 1) jump(0);
  state.last = performance.now();
  requestAnimationFrame(tick);
}

function stepBy(count) {
  if (state.playing) play();
  jump((state.frame + count + data.frames) % data.frames);
}

function look(azimuth, elevation) {
  Object.assign(camera, { azimuth, elevation });
  redraw();
}

function reset() {
  Object.assign(camera, { ...first, target: [...first.target] });
  redraw();
}

function zoom(factor) {
  camera.distance = Math.min(Math.max(camera.distance * factor, first.distance / 20), first.distance * 10);
  redraw();
}

function orbit(x, y) {
  camera.azimuth += 0.008 * x;
  camera.elevation = Math.min(Math.max(camera.elevation + 0.008 * y, -Math.PI / 2), Math.PI / 2);
  redraw();
}

function pan(x, y) {
  const unit = 2 * camera.distance * Math.tan(FIELD_OF_VIEW / 2) / Math.min(view.clientWidth, view.clientHeight), { azimuth: a, elevation: e } = camera;
  const right = [Math.cos(a), -Math.sin(a), 0], down = [-Math.sin(a) * Math.sin(e), -Math.cos(a) * Math.sin(e), -Math.cos(e)];
  camera.target = camera.target.map((value, k) => value - unit * (x * right[k] + y * down[k]));
  redraw();
}

function theme() {
  document.documentElement.classList.toggle("light", !state.dark);
  at("theme").textContent = state.dark ? "Light" : "Dark";
  redraw();
}

function row(text, colour, box) {
  const label = document.createElement("label"), mark = document.createElement("i");
  label.className = "check";
  mark.style.background = colour;
  label.append(...(box ? [box] : []), mark, text);
  return label;
}

function legend() {
  const sides = ["middle", "left side", "right side"].map((name, side) => row(name, rgb(data.side_colours[side])));
  at("legend").replaceChildren(...(at("by").value === "side" ? sides : []));
  redraw();
}

at("frame").max = data.frames - 1;
at("by").value = people.length > 1 ? "person" : "side";
if (people.length > 1) for (const person of people) {
  const box = document.createElement("input");
  [box.type, box.checked] = ["checkbox", true];
  box.addEventListener("change", () => { person.shown = box.checked; redraw(); });
  at("people").append(row(person.name, person.colour, box));
}
if (innerWidth < 520) at("panel").open = false;
at("frame").addEventListener("input", () => jump(Number(at("frame").value)));
at("by").addEventListener("input", legend);
at("names").addEventListener("input", redraw);
for (const [id, act] of Object.entries({
  play, reset, previous: () => stepBy(-1), next: () => stepBy(1), front: () => look(0, 0), side: () => look(-Math.PI / 2, 0), top: () => look(0, Math.PI / 2),
  theme: () => { state.dark = !state.dark; theme(); },
})) at(id).addEventListener("click", act);
addEventListener("resize", redraw);
addEventListener("keydown", (event) => {
  if (/INPUT|SELECT|BUTTON|SUMMARY/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  const act = {
    " ": play, ArrowLeft: () => stepBy(-1), ArrowRight: () => stepBy(1), Home: () => jump(0), End: () => jump(data.frames - 1),
    ArrowUp: () => zoom(0.9), ArrowDown: () => zoom(1 / 0.9), "+": () => zoom(0.9), "-": () => zoom(1 / 0.9),
    r: reset, f: () => at("front").click(), s: () => at("side").click(), t: () => at("top").click(),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

// One pointer orbits (with shift or another button it pans), two pan and zoom.
const pointers = new Map();
view.addEventListener("contextmenu", (event) => event.preventDefault());
view.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(event.deltaY * 0.001)); }, { passive: false });
view.addEventListener("pointerdown", (event) => {
  view.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
});
view.addEventListener("pointermove", (event) => {
  const last = pointers.get(event.pointerId);
  if (!last) return;
  const here = [event.clientX, event.clientY], x = here[0] - last[0], y = here[1] - last[1];
  if (pointers.size === 2) {
    const [, other] = [...pointers].find(([id]) => id !== event.pointerId), gap = (spot) => Math.hypot(spot[0] - other[0], spot[1] - other[1]);
    zoom(gap(last) / Math.max(gap(here), 1));
    pan(x / 2, y / 2);
  } else if (event.shiftKey || event.buttons > 1) pan(x, y);
  else orbit(x, y);
  pointers.set(event.pointerId, here);
});
for (const kind of ["pointerup", "pointercancel"]) view.addEventListener(kind, (event) => pointers.delete(event.pointerId));

legend();
theme();
go(0);

// The page: frames, colours, sliders, picking. All names from files reach the document as text only.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const state = { frame: 0, by: data.colour, score: data.threshold, hidden: new Set(), size: 2, dark: data.dark, low: 0, high: 100, picked: null };
const renderer = new Renderer(at("points")), overlay = at("overlay"), camera = new Camera(data.camera.position, data.camera.target);
camera.first.nearest = camera.distance / 1000;
const colourMap = decode(data.map, Uint8Array);
let playing = null, moving = false, resting = null, waiting = false, budget = 60000;

function decode(text, Type) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return new Type(bytes.buffer);
}

function frame() {
  const current = data.frames[state.frame];
  if (!current.ready) {
    const arrays = { float32: Float32Array, int32: Int32Array, int16: Int16Array, uint8: Uint8Array };
    current.ready = Object.fromEntries(Object.entries(current.arrays).map(([name, [type, text]]) => [name, decode(text, arrays[type])]));
    current.arrays = null;  // the text is no longer needed
  }
  return current;
}

function values(name) {
  const { ready, shown } = frame();
  if (name !== "height") return ready[`column ${name}`];
  return Float32Array.from({ length: shown }, (_, i) => ready.points[3 * i + 2]);
}

const boxShown = (current, row) => !(current.scores[row] !== null && current.scores[row] < state.score) && !state.hidden.has(current.labels[row]);
const truthShown = (current, row) => at("truth").checked && !state.hidden.has(current.truth_labels[row]);

// A colour of each category, and the category of each point; colours[last] is for none.
function categories(current) {
  const { ready } = current, own = ready[state.by], nothing = [...data.nothing, 255];
  if (own) {
    const names = current.names[state.by];
    const colours = names.map((name) => [...(state.by === "error" ? data.errors : data.classes)[name], state.hidden.has(name) ? 0 : 255]);
    return { names, colours: [...colours, nothing], code: (i) => own[i] < 0 ? names.length : own[i] };
  }
  const names = state.by === "error" ? ["found", "missed", "false alarm", "wrong class"] : Object.keys(data.classes);
  const order = Object.fromEntries(Object.keys(data.classes).map((name, k) => [name, k])), none = names.length;
  const truth = current.truth_labels.map((name) => state.hidden.has(name) ? -1 : order[name]);
  const found = current.labels.map((name, row) => boxShown(current, row) ? order[name] : -1);
  const classOf = (classes, box) => box < 0 ? -1 : classes[box];
  const colours = [...names.map((name) => [...(state.by === "error" ? data.errors : data.classes)[name], 255]), nothing];
  const code = (i) => {
    const a = classOf(truth, ready.truth_of[i]), b = classOf(found, ready.found_of[i]);
    if (state.by !== "error") return state.by === "label" ? (a < 0 ? none : a) : (b < 0 ? none : b);
    if (a < 0) return b < 0 ? none : 2;
    return b < 0 ? 1 : a === b ? 0 : 3;
  };
  return { names, colours, code };
}

function paint() {
  const current = frame(), { ready, shown } = current, colours = new Uint8Array(4 * shown);
  const span = data.spans[state.by];
  at("span").hidden = !span;
  at("legend").replaceChildren();
  if (state.by === "rgb") {
    for (let i = 0; i < shown; i++) colours.set([ready.rgb[3 * i], ready.rgb[3 * i + 1], ready.rgb[3 * i + 2], 255], 4 * i);
  } else if (span && (state.by === "height" || ready[`column ${state.by}`])) {
    const numbers = values(state.by), width = span[1] - span[0];
    const low = span[0] + width * state.low / 100, high = Math.max(span[0] + width * state.high / 100, low + width / 1000);
    for (let i = 0; i < shown; i++) {
      const step = 3 * Math.min(255, Math.max(0, Math.floor((numbers[i] - low) / (high - low) * 255)));
      if (Number.isFinite(numbers[i])) colours.set([colourMap[step], colourMap[step + 1], colourMap[step + 2], 255], 4 * i);
      else colours.set([...data.nothing, 255], 4 * i);
    }
    at("low-text").textContent = low.toPrecision(4);
    at("high-text").textContent = high.toPrecision(4);
  } else if (ready[state.by] || (["label", "prediction", "error"].includes(state.by) && ready.truth_of)) {
    const { names, colours: table, code } = categories(current);
    for (let i = 0; i < shown; i++) colours.set(table[code(i)], 4 * i);
    if (state.by === "error") at("legend").replaceChildren(...names.map((name) => legendRow(name, data.errors[name])));
  } else {
    for (let i = 0; i < shown; i++) colours.set([...data.nothing, 255], 4 * i);
  }
  renderer.setColours(colours);
}

function legendRow(name, colour) {
  const row = document.createElement("div"), mark = document.createElement("i");
  row.className = "check";
  mark.style.background = `rgb(${colour})`;
  row.append(mark, name);
  return row;
}

function outline() {
  const current = frame(), both = current.boxes.length > 0, segments = [];
  current.truth.forEach((box, row) => {
    const colour = both ? data.truth_colours[state.dark ? "dark" : "light"] : data.classes[current.truth_labels[row]];
    if (truthShown(current, row)) segments.push(...boxSegments(box, colour, both ? 0.6 : 1));
  });
  current.boxes.forEach((box, row) => {
    if (boxShown(current, row)) segments.push(...boxSegments(box, data.classes[current.labels[row]]));
  });
  renderer.setLines(segments);
}

// What depends on the frame, the score and the classes. `points`: also the positions.
function update(points) {
  const current = frame();
  if (points) {
    renderer.setPoints(current.ready.points);
    state.picked = null;
    at("facts").replaceChildren();
  }
  paint();
  outline();
  at("name").textContent = current.name;
  at("frame").value = state.frame;
  at("frame-text").textContent = `${state.frame + 1} of ${data.frames.length}`;
  at("score-text").textContent = state.score.toFixed(2);
  at("size-text").textContent = state.size;
  for (const mark of document.querySelectorAll("[data-count]")) {
    const name = mark.dataset.count;
    const found = current.labels.filter((label, row) => label === name && boxShown(current, row)).length;
    const truth = current.truth_labels.filter((label) => label === name).length;
    mark.textContent = current.boxes.length && current.truth.length ? `${found} / ${truth}` : found || truth || "";
  }
  redraw();
}

function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(draw);
}

function draw() {
  waiting = false;
  const current = frame(), scale = window.devicePixelRatio || 1;
  const count = moving || playing ? Math.min(current.shown, Math.round(budget)) : current.shown;
  renderer.resize(scale);
  const started = performance.now();
  renderer.draw(camera, { count, size: state.size, background: data.backgrounds[state.dark ? "dark" : "light"], scale });
  if (moving) {  // as many points as this machine draws some 30 times in a second
    renderer.finish();
    budget = Math.min(Math.max(budget * Math.min(Math.max(30 / (performance.now() - started), 0.2), 1.3), 5000), 4e6);
  }
  write(scale);
  const some = [`${current.shown.toLocaleString()} points`];
  if (current.shown < current.total) some[0] = `thinned: ${some[0]} of ${current.total.toLocaleString()}`;
  if (count < current.shown) some.push(`${count.toLocaleString()} while moving`);
  if (current.boxes.length) some.push(`${current.boxes.filter((_, row) => boxShown(current, row)).length} of ${current.boxes.length} boxes`);
  if (current.truth.length) some.push(`${current.truth.length} true boxes`);
  at("status").textContent = some.join(", ");
}

function moved() {
  moving = true;
  clearTimeout(resting);
  resting = setTimeout(() => { moving = false; redraw(); }, 200);
  redraw();
}

// Where points are on the screen, in CSS pixels, and how far away.
function projector() {
  const width = overlay.clientWidth, height = overlay.clientHeight, m = camera.matrix(width / height);
  return (x, y, z) => {
    const w = m[3] * x + m[7] * y + m[11] * z + m[15];
    if (w < camera.near) return null;
    return [(1 + (m[0] * x + m[4] * y + m[8] * z + m[12]) / w) * width / 2, (1 - (m[1] * x + m[5] * y + m[9] * z + m[13]) / w) * height / 2, w];
  };
}

// Names and scores above the boxes, the highest scores first; what would cover an earlier text is left out.
function write(scale) {
  const current = frame(), pen = overlay.getContext("2d"), project = projector(), taken = [];
  [overlay.width, overlay.height] = [renderer.canvas.width, renderer.canvas.height];
  pen.scale(scale, scale);
  pen.font = "12px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.lineWidth = 3;
  pen.strokeStyle = `rgb(${data.backgrounds[state.dark ? "dark" : "light"]})`;
  const found = current.boxes.length > 0, boxes = found ? current.boxes : current.truth, labels = found ? current.labels : current.truth_labels;
  if (at("labels").checked) boxes.forEach((box, row) => {
    if (!(found ? boxShown(current, row) : truthShown(current, row))) return;
    const spot = project(box[0], box[1], box[2] + box[5] / 2);
    if (!spot) return;
    const score = found ? current.scores[row] : null, text = score === null ? labels[row] : `${labels[row]} ${score.toFixed(2)}`;
    const half = pen.measureText(text).width / 2, x = spot[0], y = spot[1] - 6;
    if (taken.some(([a, b, c]) => Math.abs(a - x) < half + c && Math.abs(b - y) < 13)) return;
    taken.push([x, y, half]);
    pen.strokeText(text, x, y);
    pen.fillStyle = `rgb(${data.classes[labels[row]]})`;
    pen.fillText(text, x, y);
  });
  const mark = state.picked && project(...state.picked);
  if (!mark) return;
  pen.beginPath();
  pen.arc(mark[0], mark[1], 8, 0, 2 * Math.PI);
  pen.strokeStyle = getComputedStyle(document.body).color;
  pen.lineWidth = 2;
  pen.stroke();
}

function pick(x, y) {
  const current = frame(), { points } = current.ready, project = projector();
  const near = [];
  for (let i = 0; i < current.shown; i++) {
    const spot = project(points[3 * i], points[3 * i + 1], points[3 * i + 2]);
    if (spot && Math.abs(spot[0] - x) < 7 && Math.abs(spot[1] - y) < 7) near.push([i, spot[2], Math.hypot(spot[0] - x, spot[1] - y)]);
  }
  const front = 1.05 * Math.min(...near.map((hit) => hit[1])) + 0.05;
  const [best] = near.filter((hit) => hit[1] <= front).sort((a, b) => a[2] - b[2]);
  const facts = best ? pointFacts(current, best[0]) : [];
  state.picked = best ? Array.from(points.subarray(3 * best[0], 3 * best[0] + 3)) : null;
  const box = pickBox(current, x, y);
  if (box) facts.push(...boxFacts(current, box));
  at("facts").replaceChildren(...facts.flatMap(([name, value]) => {
    const [term, text] = [document.createElement("dt"), document.createElement("dd")];
    [term.textContent, text.textContent] = [name, value];
    return [term, text];
  }));
  redraw();
}

function pointFacts(current, i) {
  const { ready } = current, p = Array.from(ready.points.subarray(3 * i, 3 * i + 3));
  const facts = [["point", String(ready.rows[i])], ["x y z", `${p.map((v) => v.toFixed(2)).join(" ")} m`], ["distance", `${Math.hypot(p[0], p[1]).toFixed(2)} m`]];
  for (const name of current.columns) facts.push([name, String(+ready[`column ${name}`][i].toPrecision(6))]);
  for (const name of ["label", "prediction"]) if (ready[name]) facts.push([name, ready[name][i] < 0 ? "none" : current.names[name][ready[name][i]]]);
  return facts;
}

// The box that the pointer's ray enters first, in the frame of each box a test of three slabs.
function pickBox(current, x, y) {
  const { right, up, away } = camera.axes(), eye = camera.position(), t = Math.tan(FIELD_OF_VIEW / 2), height = overlay.clientHeight;
  const a = (x - overlay.clientWidth / 2) / (height / 2) * t, b = (height / 2 - y) / (height / 2) * t;
  const ray = away.map((value, axis) => value + right[axis] * a + up[axis] * b);
  let best = null;
  for (const [kind, boxes, shown] of [["box", current.boxes, boxShown], ["true box", current.truth, truthShown]]) boxes.forEach((box, row) => {
    if (!shown(current, row)) return;
    const c = Math.cos(box[6]), s = Math.sin(box[6]), turn = ([u, v, w]) => [c * u + s * v, c * v - s * u, w];
    const start = turn(eye.map((value, axis) => value - box[axis])), step = turn(ray).map((value) => Math.abs(value) < 1e-12 ? 1e-12 : value);
    const pairs = [0, 1, 2].map((k) => [(-box[3 + k] / 2 - start[k]) / step[k], (box[3 + k] / 2 - start[k]) / step[k]]);
    const enter = Math.max(0, ...pairs.map((pair) => Math.min(...pair))), leave = Math.min(...pairs.map((pair) => Math.max(...pair)));
    if (leave >= enter && (!best || enter < best.enter)) best = { kind, box, row, enter };
  });
  return best;
}

function boxFacts(current, { kind, box, row }) {
  const found = kind === "box", { points } = current.ready, c = Math.cos(box[6]), s = Math.sin(box[6]);
  let inside = 0;
  for (let i = 0; i < current.shown; i++) {
    const x = points[3 * i] - box[0], y = points[3 * i + 1] - box[1], z = points[3 * i + 2] - box[2];
    inside += Math.abs(c * x + s * y) <= box[3] / 2 && Math.abs(c * y - s * x) <= box[4] / 2 && Math.abs(z) <= box[5] / 2;
  }
  const facts = [[kind, found ? current.labels[row] : current.truth_labels[row]]], text = (from, to) => box.slice(from, to).map((v) => v.toFixed(2)).join(" ");
  if (found && current.scores[row] !== null) facts.push(["score", current.scores[row].toFixed(3)]);
  facts.push(["centre", `${text(0, 3)} m`], ["l w h", `${text(3, 6)} m`], ["heading", `${(box[6] * 180 / Math.PI).toFixed(1)}°`]);
  if (box.length >= 9 && box[7] !== null && box[8] !== null) facts.push(["speed", `${Math.hypot(box[7], box[8]).toFixed(2)} m/s`]);
  facts.push(["points inside", String(inside)]);
  return facts;
}

function go(index) {
  state.frame = (index + data.frames.length) % data.frames.length;
  update(true);
}

function play() {
  playing = playing ? clearInterval(playing) : setInterval(() => go(state.frame + 1), 200);
  at("play").textContent = playing ? "Pause" : "Play";
  redraw();
}

function theme() {
  document.documentElement.classList.toggle("light", !state.dark);
  at("theme").textContent = state.dark ? "Light" : "Dark";
}

function screenshot() {
  draw();
  const sheet = document.createElement("canvas"), pen = sheet.getContext("2d"), link = document.createElement("a");
  [sheet.width, sheet.height] = [overlay.width, overlay.height];
  pen.drawImage(renderer.canvas, 0, 0);
  pen.drawImage(overlay, 0, 0);
  sheet.toBlob((blob) => {
    link.href = URL.createObjectURL(blob);
    link.download = `${frame().name.replace(/[^\w.-]+/g, "_")}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

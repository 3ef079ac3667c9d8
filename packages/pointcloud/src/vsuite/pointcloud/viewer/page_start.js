// Wires the controls and the pointer, and draws the first frame.

function buildControls() {
  for (const name of data.choices) at("colour").append(new Option(name, name, false, name === state.by));
  for (const [name, colour] of Object.entries(data.classes)) {
    const row = document.createElement("label"), box = document.createElement("input"), mark = document.createElement("i"), count = document.createElement("span");
    [row.className, box.type, box.checked, box.dataset.class, count.dataset.count] = ["check", "checkbox", true, name, name];
    mark.style.background = `rgb(${colour})`;
    box.addEventListener("change", () => {
      box.checked ? state.hidden.delete(name) : state.hidden.add(name);
      update();
    });
    row.append(box, mark, name, count);
    at("classes").append(row);
  }
  const colours = Array.from({ length: 16 }, (_, k) => `rgb(${colourMap.subarray(51 * k, 51 * k + 3)})`);
  at("bar").style.background = `linear-gradient(to right, ${colours})`;
  at("frame").max = data.frames.length - 1;
  at("score").value = state.score;
  at("frames").hidden = data.frames.length < 2;
  at("score-row").hidden = !data.frames.some((one) => one.scores.some((score) => score !== null));
  at("truth-row").hidden = !data.frames.some((one) => one.truth.length);
  at("labels-row").hidden = !data.frames.some((one) => one.truth.length + one.boxes.length);
}

function onInput(id, act) {
  at(id).addEventListener("input", () => act(at(id)));
}

onInput("frame", (slider) => go(Number(slider.value)));
onInput("score", (slider) => { state.score = Number(slider.value); update(); });
onInput("size", (slider) => { state.size = Number(slider.value); update(); });
onInput("colour", (list) => { state.by = list.value; update(); });
onInput("low", (slider) => { state.low = Number(slider.value); update(); });
onInput("high", (slider) => { state.high = Number(slider.value); update(); });
onInput("truth", () => update());
onInput("labels", () => redraw());
at("previous").addEventListener("click", () => go(state.frame - 1));
at("next").addEventListener("click", () => go(state.frame + 1));
at("play").addEventListener("click", play);
at("reset").addEventListener("click", () => { camera.reset(); redraw(); });
at("top").addEventListener("click", () => { camera.fromAbove(); redraw(); });
at("theme").addEventListener("click", () => { state.dark = !state.dark; theme(); update(); });
at("screenshot").addEventListener("click", screenshot);
addEventListener("resize", redraw);
addEventListener("keydown", (event) => {
  if (/INPUT|SELECT|BUTTON/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  const act = { " ": play, ArrowLeft: () => go(state.frame - 1), ArrowRight: () => go(state.frame + 1), r: () => at("reset").click(), t: () => at("top").click() }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

// One pointer orbits (with shift or another button it pans), two pan and zoom; a press without a move picks.
const pointers = new Map(), canvas = at("points");
let travelled = 0;
canvas.addEventListener("contextmenu", (event) => event.preventDefault());
canvas.addEventListener("wheel", (event) => { event.preventDefault(); camera.zoom(Math.exp(event.deltaY * 0.001)); moved(); }, { passive: false });
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  if (!pointers.size) travelled = 0;
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
});
canvas.addEventListener("pointermove", (event) => {
  const last = pointers.get(event.pointerId);
  if (!last) return;
  const here = [event.clientX, event.clientY], x = here[0] - last[0], y = here[1] - last[1];
  travelled += Math.abs(x) + Math.abs(y);
  if (travelled < 4) return;
  if (pointers.size === 2) {
    const [, other] = [...pointers].find(([id]) => id !== event.pointerId), gap = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]);
    camera.zoom(gap(last) / Math.max(gap(here), 1));
    camera.pan(x / 2, y / 2, canvas.clientHeight);
  } else if (event.shiftKey || event.buttons !== 1) camera.pan(x, y, canvas.clientHeight);
  else camera.orbit(x, y);
  pointers.set(event.pointerId, here);
  moved();
});
canvas.addEventListener("pointerup", (event) => {
  if (pointers.size === 1 && travelled < 4) pick(event.clientX, event.clientY);
});
for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => pointers.delete(event.pointerId));

buildControls();
theme();
update(true);

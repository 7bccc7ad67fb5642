// Before and after of several frames: one divider, one zoom and one place for all of them.
import { el, fill, percent, place } from "./dom.js";

const MOST_ZOOM = 16;

export function viewer(scenes, { names = ["before", "after"], name = "picture" } = {}) {
  const opens = Math.max(0, scenes.findIndex((scene) => scene.has_most_detail));
  const state = { index: opens, split: 0.5, zoom: 1, x: 0, y: 0, smooth: true };
  const images = names.map((name) => el("img", { alt: "", draggable: "false", decoding: "async" }));
  const layers = images.map((image, side) => el("div", { class: "layer " + (side ? "after" : "before") }, image));
  const handle = el("div", {
    class: "divider",
    role: "slider",
    tabindex: "0",
    "aria-label": `Divider between ${names[0]} and ${names[1]}`,
    "aria-valuemin": 0,
    "aria-valuemax": 100,
    "aria-orientation": "horizontal",
  });
  handle.append(el("span", { class: "grip", "aria-hidden": "true" }, "‹ ›"));
  const tags = names.map((name, side) => el("span", { class: "tag " + (side ? "right" : "left") }, name));
  const stage = el("div", { class: "stage" }, layers[1], layers[0], tags, handle);
  const level = el("output", { class: "level", "aria-live": "polite" });
  const about = el("p", { class: "soft caption" });
  const smooth = button("pixels", "Show pixels as squares (P)", () => change({ smooth: !state.smooth }));
  const tools = el(
    "div",
    { class: "tools", role: "toolbar", "aria-label": "Zoom" },
    button("−", "Zoom out (−)", () => zoomBy(1 / 1.5)),
    level,
    button("+", "Zoom in (+)", () => zoomBy(1.5)),
    button("fit", "Whole picture (0)", () => change({ zoom: 1, x: 0, y: 0 })),
    button("1:1", "One dot of the output on one dot of the screen (1)", oneToOne),
    smooth,
    button("save", "Save both crops, side by side, as a PNG file (S)", save),
  );
  const thumbs = scenes.map((scene, index) =>
    el(
      "button",
      { type: "button", class: "thumb", onclick: () => choose(index), "aria-label": `Frame at ${place(scene.time_s)}` },
      el("img", { src: scene.after, alt: "", loading: "lazy" }),
      el("span", {}, place(scene.time_s)),
    ),
  );
  const strip = scenes.length > 1 ? el("div", { class: "thumbs", role: "group", "aria-label": "Frames" }, thumbs) : null;
  const hint = el(
    "p",
    { class: "soft hint" },
    "Drag the divider or use ← →. Zoom with + and −, a pinch, or Ctrl and the wheel; drag or Shift with arrows moves the picture.",
  );
  const root = el("figure", { class: "viewer" }, stage, el("div", { class: "below" }, about, tools), strip, hint);

  function button(text, label, onclick) {
    return el("button", { type: "button", class: "tool", "aria-label": label, title: label, onclick }, text);
  }

  function change(update) {
    Object.assign(state, update);
    state.zoom = Math.min(MOST_ZOOM, Math.max(1, state.zoom));
    state.split = Math.min(1, Math.max(0, state.split));
    state.x = Math.min(0, Math.max(1 - state.zoom, state.x));
    state.y = Math.min(0, Math.max(1 - state.zoom, state.y));
    draw();
  }

  function draw() {
    const scene = scenes[state.index];
    [scene.before, scene.after].forEach((source, side) => {
      if (images[side].getAttribute("src") !== source) images[side].src = source;
      images[side].alt = `${names[side]}, at ${place(scene.time_s)}`;
      images[side].style.transform = `translate(${100 * state.x}%, ${100 * state.y}%) scale(${state.zoom})`;
      images[side].classList.toggle("squares", !state.smooth);
    });
    stage.style.aspectRatio = `${scene.width} / ${scene.height}`;
    stage.style.setProperty("--ratio", String(scene.width / scene.height));
    layers[0].style.clipPath = `inset(0 ${100 * (1 - state.split)}% 0 0)`;
    handle.style.left = `${100 * state.split}%`;
    const left = Math.round(100 * state.split);
    handle.setAttribute("aria-valuenow", left);
    handle.setAttribute("aria-valuetext", `${names[0]} ${left} %, ${names[1]} ${100 - left} %`);
    stage.classList.toggle("zoomed", state.zoom > 1);
    Object.assign(stage.dataset, { zoom: state.zoom.toFixed(3), split: state.split.toFixed(3), index: state.index });
    level.textContent = percent(state.zoom);
    smooth.setAttribute("aria-pressed", String(!state.smooth));
    thumbs.forEach((thumb, index) => thumb.setAttribute("aria-pressed", String(index === state.index)));
    const reduced = scene.is_reduced ? `, made smaller from ${scene.width} × ${scene.height} for this page` : "";
    fill(about, scene.caption || `Frame ${scene.frame}, at ${place(scene.time_s)}${reduced}`);
  }

  function zoomBy(factor, at = [0.5, 0.5]) {
    const zoom = Math.min(MOST_ZOOM, Math.max(1, state.zoom * factor));
    const grown = zoom / state.zoom;
    change({ zoom, x: at[0] - (at[0] - state.x) * grown, y: at[1] - (at[1] - state.y) * grown });
  }

  function oneToOne() {
    const zoom = scenes[state.index].width / (stage.clientWidth * devicePixelRatio);
    zoomBy(zoom / state.zoom);
  }

  function choose(index) {
    if (state.zoom > 1 && scenes[index].focus) showFocus(index, state.zoom);
    else change({ index });
  }

  // A zoom at which the part with the most detail is in the middle.
  function showFocus(index, zoom) {
    const [x, y] = scenes[index].focus;
    state.zoom = Math.min(MOST_ZOOM, Math.max(1, zoom));
    change({ index, x: 0.5 - x * state.zoom, y: 0.5 - y * state.zoom });
  }

  // The visible part of both pictures in the output's dots.
  async function save() {
    const scene = scenes[state.index];
    const wide = Math.max(1, Math.round(scene.width / state.zoom));
    const high = Math.max(1, Math.round(scene.height / state.zoom));
    const [gap, line] = [8, 28];
    const canvas = Object.assign(document.createElement("canvas"), { width: 2 * wide + gap, height: high + line });
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = "#000";
    context.font = "14px sans-serif";
    context.imageSmoothingEnabled = state.smooth;
    context.imageSmoothingQuality = "high";
    for (const [side, image] of images.entries()) {
      await image.decode();
      const [full, tall] = [image.naturalWidth, image.naturalHeight];
      const from = [(-state.x / state.zoom) * full, (-state.y / state.zoom) * tall, full / state.zoom, tall / state.zoom];
      context.drawImage(image, ...from, side * (wide + gap), line, wide, high);
      context.fillText(names[side], side * (wide + gap) + 4, 19, wide - 8);
    }
    const file = await new Promise((done) => canvas.toBlob(done, "image/png"));
    const href = URL.createObjectURL(file);
    el("a", { href, download: `${name}-frame-${scene.frame}.png` }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10_000);
  }

  function at(event) {
    const box = stage.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  const held = new Map();
  let mode = null;
  let last = null;

  function spread() {
    const [a, b] = [...held.values()];
    return { middle: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2], apart: Math.hypot(a[0] - b[0], a[1] - b[1]) };
  }

  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    held.set(event.pointerId, at(event));
    stage.setPointerCapture(event.pointerId);
    const isNear = Math.abs(at(event)[0] - state.split) * stage.clientWidth < 24;
    mode = held.size > 1 ? "pinch" : state.zoom === 1 || isNear ? "split" : "pan";
    last = mode === "pinch" ? spread() : at(event);
    if (mode === "split" && event.pointerType === "mouse") change({ split: last[0] });
  });
  stage.addEventListener("mousedown", (event) => {
    event.preventDefault(); // the press would take the keys away from the divider
    handle.focus({ preventScroll: true });
  });
  stage.addEventListener("pointermove", (event) => {
    if (!held.has(event.pointerId)) return;
    const now = at(event);
    held.set(event.pointerId, now);
    if (mode === "split") change({ split: now[0] });
    else if (mode === "pan") {
      change({ x: state.x + now[0] - last[0], y: state.y + now[1] - last[1] });
      last = now;
    } else if (mode === "pinch" && held.size > 1) {
      const moved = spread();
      zoomBy(moved.apart / Math.max(last.apart, 1e-3), moved.middle);
      last = moved;
    }
  });
  for (const name of ["pointerup", "pointercancel"]) {
    stage.addEventListener(name, (event) => {
      held.delete(event.pointerId);
      mode = null;
    });
  }
  stage.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      zoomBy(Math.exp(-event.deltaY / 200), at(event));
    },
    { passive: false },
  );
  stage.addEventListener("dblclick", (event) => (state.zoom > 1 ? change({ zoom: 1 }) : zoomBy(4, at(event))));
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (pressed(event.key, event.shiftKey, event.target === handle)) event.preventDefault();
  });

  function pressed(key, isShifted, isOnHandle) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (key === "+" || key === "=") zoomBy(1.5);
    else if (key === "-" || key === "_") zoomBy(1 / 1.5);
    else if (key === "0") change({ zoom: 1 });
    else if (key === "1") oneToOne();
    else if (key === "s" || key === "S") save();
    else if (key === "p" || key === "P") change({ smooth: !state.smooth });
    else if (steps[key] && isShifted) {
      change({ x: state.x - 0.1 * steps[key][0], y: state.y - 0.1 * steps[key][1] });
    } else if (!isOnHandle) return false;
    else if (key === "ArrowLeft" || key === "ArrowDown") change({ split: state.split - 0.02 });
    else if (key === "ArrowRight" || key === "ArrowUp") change({ split: state.split + 0.02 });
    else if (key === "PageDown") change({ split: state.split - 0.1 });
    else if (key === "PageUp") change({ split: state.split + 0.1 });
    else if (key === "Home") change({ split: 0 });
    else if (key === "End") change({ split: 1 });
    else return false;
    return true;
  }

  draw();
  const opening = new ResizeObserver(() => {
    if (!stage.clientWidth) return;
    opening.disconnect();
    const scene = scenes[state.index];
    if (state.zoom === 1 && scene.focus) showFocus(state.index, scene.width / (stage.clientWidth * devicePixelRatio));
  });
  opening.observe(stage);
  return root;
}

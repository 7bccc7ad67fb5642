// Workers over time: speed above, one lane for each worker below, on one axis of time.
import { clock, colours, count, el, fill, onTheme, speed } from "./dom.js";

const CHART = 84;
const AXIS = 26;
const GAP = 14;
const MOST = 520;
const NAMES = ["ink", "soft", "line", "bar", "bar2", "bad", "warn", "accent", "card", "area"];
const CAUSES = { died: "died", stopped: "was stopped", backend: "an error of node or store", media: "could not be made" };

export function timeline(history) {
  let shown = history;
  let view = [0, 1];
  let lanes = [];
  let rows = {};
  let focus = null;
  let pointer = null;
  const canvas = el("canvas", {
    tabindex: "0",
    role: "img",
    "aria-label": "Timeline of workers. Arrow keys go from shard to shard, + and − zoom.",
  });
  const tip = el("div", { class: "tip", hidden: true, role: "status" });
  const root = el("div", { class: "timeline" }, canvas, tip, legend());
  const context = canvas.getContext("2d");

  function setHistory(next) {
    shown = next;
    lanes = shown.lanes.map(() => []);
    for (const bar of shown.bars) lanes[bar[0]].push({ from: bar[1], to: bar[2], bar });
    for (const gap of shown.breaks) lanes[gap[0]].push({ from: gap[1], to: gap[2], gap });
    for (const lane of lanes) lane.sort((a, b) => a.from - b.from);
    layout();
  }

  function layout() {
    const wide = root.clientWidth || 800;
    const number = Math.max(1, lanes.length);
    const row = Math.max(3, Math.min(24, Math.floor((MOST - CHART - AXIS - GAP) / number)));
    rows = { label: wide < 560 || row < 11 ? 0 : 132, row, wide, top: CHART + GAP };
    rows.high = rows.top + row * number + AXIS;
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.round(rows.high * ratio);
    canvas.style.height = `${rows.high}px`;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    draw();
  }

  const across = () => rows.wide - rows.label - 8;
  const span = () => Math.max(shown.span_s, 1e-6);
  const x = (seconds) => rows.label + ((seconds / span() - view[0]) / (view[1] - view[0])) * across();
  const seconds = (px) => (view[0] + ((px - rows.label) / across()) * (view[1] - view[0])) * span();

  function draw() {
    const c = colours(...NAMES);
    context.clearRect(0, 0, rows.wide, rows.high);
    context.font = "12px Inter, system-ui, sans-serif";
    context.textBaseline = "middle";
    axis(c);
    context.save();
    context.beginPath();
    context.rect(rows.label, 0, across() + 4, rows.high);
    context.clip();
    curve(c);
    lanes.forEach((lane, index) => drawLane(c, lane, index));
    context.restore();
    if (rows.label) names(c);
    if (pointer !== null) {
      context.fillStyle = c.soft;
      context.fillRect(pointer, 0, 1, rows.high - AXIS);
    }
  }

  function axis(c) {
    const step = nice(((view[1] - view[0]) * span()) / Math.max(3, across() / 110));
    context.textAlign = "center";
    for (let t = Math.ceil((view[0] * span()) / step) * step; t <= view[1] * span() + 1e-9; t += step) {
      context.fillStyle = c.line;
      context.fillRect(x(t), 0, 1, rows.high - AXIS);
      context.fillStyle = c.soft;
      context.fillText(short(t, step), Math.min(Math.max(x(t), rows.label + 18), rows.wide - 26), rows.high - AXIS / 2 + 2);
    }
  }

  function curve(c) {
    const most = Math.max(...shown.fps, 1e-9);
    const y = (fps) => CHART - 4 - (fps / most) * (CHART - 24);
    context.beginPath();
    context.moveTo(x(0), CHART - 4);
    shown.fps.forEach((fps, index) => {
      context.lineTo(x(index * shown.step_s), y(fps));
      context.lineTo(x((index + 1) * shown.step_s), y(fps));
    });
    context.lineTo(x(shown.fps.length * shown.step_s), CHART - 4);
    context.closePath();
    context.fillStyle = c.area;
    context.fill();
    context.strokeStyle = c.accent;
    context.lineWidth = 1.5;
    context.stroke();
    context.fillStyle = c.soft;
    context.textAlign = "left";
    if (shown.fps.length) context.fillText(`${speed(most)} fps at most`, rows.label + 4, 9);
  }

  function drawLane(c, items, index) {
    const lane = shown.lanes[index];
    const top = rows.top + index * rows.row;
    const high = Math.max(2, rows.row - (rows.row > 8 ? 4 : 1));
    context.fillStyle = c.line;
    context.fillRect(x(lane.start_s), top + high / 2 - 0.5, Math.max(1, x(lane.stop_s) - x(lane.start_s)), 1);
    for (const item of items) {
      const left = x(item.from);
      const wide = Math.max(0.8, x(item.to) - left - (x(item.to) - left > 3 ? 1 : 0));
      if (left > rows.wide || left + wide < rows.label) continue;
      if (item.bar) context.fillStyle = item.bar[3] % 2 ? c.bar2 : c.bar;
      else context.fillStyle = c.bad;
      context.globalAlpha = item.gap ? 0.35 : 1;
      round(left, top, wide, high);
      context.globalAlpha = 1;
      if (item.gap) cross(c.bad, left + wide, top + high / 2, Math.min(5, high / 2));
      if (item === focus) {
        context.strokeStyle = c.ink;
        context.lineWidth = 2;
        context.strokeRect(left - 1, top - 1, wide + 2, high + 2);
      }
    }
    if (lane.end === "died") cross(c.bad, x(lane.stop_s), top + high / 2, Math.min(5, high / 2));
  }

  function round(left, top, wide, high) {
    if (wide < 12 || high < 8 || !context.roundRect) return context.fillRect(left, top, wide, high);
    context.beginPath();
    context.roundRect(left, top, wide, high, Math.min(3, high / 2));
    return context.fill();
  }

  function cross(colour, left, top, size) {
    context.strokeStyle = colour;
    context.lineWidth = 2;
    context.beginPath();
    context.moveTo(left - size, top - size);
    context.lineTo(left + size, top + size);
    context.moveTo(left + size, top - size);
    context.lineTo(left - size, top + size);
    context.stroke();
  }

  function names(c) {
    context.textAlign = "left";
    shown.lanes.forEach((lane, index) => {
      context.fillStyle = focus && lanes[index].includes(focus) ? c.ink : c.soft;
      context.fillText(cut(lane.worker, 18), 0, rows.top + index * rows.row + rows.row / 2 - 2);
    });
  }

  function hit(px, py) {
    const index = Math.floor((py - rows.top) / rows.row);
    const items = lanes[index];
    if (!items) return null;
    const t = seconds(px);
    const slack = (3 / across()) * (view[1] - view[0]) * span();
    let [low, high] = [0, items.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (items[middle].from <= t + slack) low = middle + 1;
      else high = middle;
    }
    for (let place = low - 1; place >= Math.max(0, low - 4); place--) {
      if (items[place].to >= t - slack) return items[place];
    }
    return null;
  }

  function say(item, px, py) {
    focus = item;
    if (!item) {
      const index = Math.floor(seconds(px) / shown.step_s);
      const fps = shown.fps[index];
      if (py < CHART && fps !== undefined) showTip([el("b", {}, `${speed(fps)} fps`), el("span", {}, `at ${clock(seconds(px))}`)], px, py);
      else tip.hidden = true;
      return draw();
    }
    const lane = shown.lanes[(item.bar || item.gap)[0]];
    const who = el("span", {}, lane.worker);
    const when = el("span", {}, `${clock(item.from)} to ${clock(item.to)}, ${clock(item.to - item.from)}`);
    if (item.bar) {
      const [, , , shard, frames, generation, psnr] = item.bar;
      const rate = el("span", {}, `${count(frames, "frame")}, ${speed(frames / Math.max(item.to - item.from, 1e-3))} fps`);
      const again = generation > 1 ? el("span", { class: "bad" }, `attempt ${generation}`) : null;
      const worst = psnr === null ? null : el("span", { class: "soft" }, `worst match: PSNR ${psnr.toFixed(1)} dB, both reduced`);
      showTip([el("b", {}, `Shard ${shard}`), who, when, rate, again, worst], px, py);
    } else {
      const [, , , shard, cause, text] = item.gap;
      const why = el("b", { class: "bad" }, `Shard ${shard}: ${CAUSES[cause] || cause}`);
      showTip([why, who, when, text ? el("span", { class: "soft" }, cut(text, 160)) : null], px, py);
    }
    draw();
  }

  function showTip(lines, px, py) {
    fill(tip, lines);
    tip.hidden = false;
    const left = Math.min(Math.max(0, px + 14), Math.max(0, rows.wide - tip.offsetWidth - 4));
    tip.style.transform = `translate(${left}px, ${py + 16}px)`;
  }

  function zoom(factor, middle = 0.5) {
    const wide = Math.min(1, Math.max(2e-4, (view[1] - view[0]) * factor));
    const at = view[0] + (view[1] - view[0]) * middle;
    move(at - wide * middle, wide);
  }

  function move(from, wide = view[1] - view[0]) {
    const start = Math.min(1 - wide, Math.max(0, from));
    view = [start, start + wide];
    root.dataset.zoom = (1 / wide).toFixed(2);
    draw();
  }

  let dragged = null;
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    if (dragged !== null) {
      move(view[0] - ((px - dragged) / across()) * (view[1] - view[0]));
      dragged = px;
      return;
    }
    pointer = px >= rows.label ? px : null;
    say(hit(px, py), px, py);
  });
  canvas.addEventListener("pointerdown", (event) => {
    if (view[1] - view[0] >= 1) return;
    dragged = event.clientX - canvas.getBoundingClientRect().left;
    canvas.setPointerCapture(event.pointerId);
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (dragged = null));
  for (const name of ["pointerleave", "blur"]) {
    canvas.addEventListener(name, () => {
      pointer = focus = null;
      tip.hidden = true;
      draw();
    });
  }
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      const box = canvas.getBoundingClientRect();
      zoom(Math.exp(event.deltaY / 250), (event.clientX - box.left - rows.label) / across());
    },
    { passive: false },
  );
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "+" || event.key === "=") zoom(0.5);
    else if (event.key === "-") zoom(2);
    else if (event.key === "Escape") say(null, -1, rows.high);
    else if (!step(event.key)) return;
    event.preventDefault();
  });

  function step(key) {
    const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[key];
    if (!by) return false;
    let lane = focus ? lanes.findIndex((items) => items.includes(focus)) : lanes.findIndex((items) => items.length);
    if (lane < 0) return true;
    let item = focus ? lanes[lane].indexOf(focus) + by[1] : 0;
    if (focus && by[0]) {
      const others = lanes.map((_, index) => index).filter((index) => lanes[index].length && (index - lane) * by[0] > 0);
      if (!others.length) return true;
      lane = by[0] > 0 ? others[0] : others[others.length - 1];
      item = lanes[lane].findIndex((each) => each.to >= focus.from);
      if (item < 0) item = lanes[lane].length - 1;
    }
    const chosen = lanes[lane][Math.max(0, Math.min(lanes[lane].length - 1, item))];
    const middle = (chosen.from + chosen.to) / 2 / span();
    if (middle < view[0] || middle > view[1]) move(middle - (view[1] - view[0]) / 2);
    say(chosen, x((chosen.from + chosen.to) / 2), rows.top + lane * rows.row);
    return true;
  }

  function legend() {
    const entry = (kind, text) => el("span", { class: "entry" }, el("i", { class: "mark " + kind }), text);
    return el(
      "p",
      { class: "legend soft" },
      entry("bar", "a finished shard"),
      entry("gap", "an attempt that ended early"),
      entry("dead", "a worker that died"),
    );
  }

  new ResizeObserver(layout).observe(root);
  onTheme(draw);
  root.setHistory = setHistory;
  setHistory(history);
  return root;
}

function nice(rough) {
  const known = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];
  return known.find((each) => each >= rough) || Math.ceil(rough / 86400) * 86400;
}

function short(t, step) {
  if (step < 1) return `${t.toFixed(1)} s`;
  if (t < 60 && step < 60) return `${Math.round(t)} s`;
  if (t < 3600) return step < 60 ? `${Math.floor(t / 60)}:${String(Math.round(t % 60)).padStart(2, "0")}` : `${Math.round(t / 60)} min`;
  return `${Math.floor(t / 3600)} h ${String(Math.round((t % 3600) / 60)).padStart(2, "0")}`;
}

function cut(text, most) {
  return text.length > most ? text.slice(0, most - 1) + "…" : text;
}

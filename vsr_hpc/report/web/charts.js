// Where the time went: three threads work side by side in every worker, each busy or waiting.
import { clock, el, percent } from "./dom.js";

const THREADS = [
  { name: "decode", busy: ["decode"], wait: "decode_wait" },
  { name: "device", busy: ["device"], wait: "device_wait" },
  { name: "encode", busy: ["encode", "check", "store"], wait: "encode_wait" },
];
const MOST_ROWS = 12;

export function threadsOf(seconds) {
  return THREADS.map((thread) => {
    const parts = thread.busy.map((stage) => [stage, seconds[stage] || 0]);
    const busy = parts.reduce((sum, part) => sum + part[1], 0);
    const wait = seconds[thread.wait] || 0;
    return { name: thread.name, parts, busy, wait, total: busy + wait, share: busy + wait > 0 ? busy / (busy + wait) : 0 };
  });
}

export function summed(lanes) {
  const total = {};
  for (const lane of lanes) {
    for (const [stage, seconds] of Object.entries(lane.seconds)) total[stage] = (total[stage] || 0) + seconds;
  }
  return total;
}

export function verdict(seconds) {
  const threads = threadsOf(seconds);
  const slowest = threads.reduce((most, each) => (each.share > most.share ? each : most), threads[0]);
  if (!slowest.total) return "No shard is finished yet.";
  const names = { decode: "Decoding", device: "The network", encode: "Encoding and checking" };
  const idle = threads.filter((each) => each !== slowest && each.wait > 0);
  const waits = idle.map((each) => `${names[each.name].toLowerCase()} waited ${percent(1 - each.share)}`).join(", ");
  return `${names[slowest.name]} set the pace: at work ${percent(slowest.share)} of the time${waits ? "; " + waits : ""}.`;
}

export function stages(lanes) {
  const working = lanes.filter((lane) => lane.shards > 0);
  const rest = working.slice(MOST_ROWS);
  return el(
    "div",
    { class: "stages" },
    legend(),
    row("all workers", summed(working), true),
    working.length > 1 ? working.slice(0, MOST_ROWS).map((lane) => row(lane.worker, lane.seconds)) : null,
    rest.length ? more(rest) : null,
  );
}

function more(lanes) {
  const body = el("div", {});
  const opened = () => {
    if (!body.childElementCount) body.append(...lanes.slice(0, 500).map((lane) => row(lane.worker, lane.seconds)));
  };
  return el("details", { ontoggle: opened }, el("summary", {}, `${lanes.length} more workers`), body);
}

function row(name, seconds, isWhole = false) {
  const threads = threadsOf(seconds);
  return el(
    "div",
    { class: "stage-row" + (isWhole ? " whole" : "") },
    el("span", { class: "who", title: name }, name),
    el("div", { class: "tracks" }, threads.map(track)),
    el("span", { class: "share" }, threads.map((each) => el("span", {}, `${each.name} ${percent(each.share)}`))),
  );
}

function track(thread) {
  const label = thread.parts.map(([stage, seconds]) => `${stage} ${clock(seconds)}`).join(", ");
  const pieces = thread.parts.map(([stage, seconds]) =>
    el("i", { class: "piece " + stage, style: { width: `${(100 * seconds) / Math.max(thread.total, 1e-9)}%` } }),
  );
  const text = `${label}, waiting ${clock(thread.wait)}`;
  return el("div", { class: "track", role: "img", "aria-label": text, title: text }, pieces);
}

function legend() {
  const entry = (stage) => el("span", { class: "entry" }, el("i", { class: "mark piece " + stage }), stage);
  return el(
    "p",
    { class: "legend soft" },
    ["decode", "device", "encode", "check", "store"].map(entry),
    el("span", { class: "entry" }, el("i", { class: "mark idle" }), "waiting"),
  );
}

// The report: what came out, who made it, what it took, whether it holds, how to do it again.
import { bytes, card, clock, count, el, fill, percent, speed } from "./dom.js";
import { viewer } from "./slider.js";
import { moving } from "./loops.js";
import { timeline } from "./timeline.js";
import { stages, summed, verdict } from "./charts.js";
import { checkList, copyable, folded, pill, sizes, table, tile, tiles, workersTable } from "./sections.js";

const run = JSON.parse(document.getElementById("data").textContent);

function head() {
  const history = run.history;
  const took = history.span_s + (run.merge_s || 0);
  const died = history.lanes.filter((lane) => lane.end === "died").length;
  const broken = new Set(history.breaks.map((each) => each[0]));
  const between = history.lanes.filter((lane, index) => lane.end === "died" && !broken.has(index)).length;
  const stops = history.breaks.length + between; // a worker may also die between two shards
  return el(
    "header",
    { class: "hero" },
    el("p", { class: "eyebrow" }, "vsr report ", pill(run.state)),
    el("h1", {}, run.name),
    el("p", { class: "lead" }, `${run.source_name}, ${sizes(run)}, by ${run.model}`),
    tiles(
      tile("frames", count(run.frames_done), run.frames_done === run.frames ? clock(run.duration_s) + " of film" : `of ${count(run.frames)}`),
      tile("took", clock(took), run.rounds.length > 1 ? `in ${run.rounds.length} rounds` : null),
      tile("speed", speed(run.frames_done / Math.max(history.span_s, 1e-3)), "frames a second"),
      tile("workers", count(history.lanes.length), died ? `${died} died` : null),
      tile("interruptions", count(stops), stops && run.state === "complete" ? "nothing was lost" : null),
      run.output_bytes === null ? null : tile("output", bytes(run.output_bytes)),
    ),
  );
}

function pictures() {
  if (!run.scenes.length) return card("Before and after", null, el("p", { class: "soft" }, run.why_no_pictures));
  const loops = run.loops.length ? [el("h3", {}, "Moving"), moving(run.loops)] : [];
  return card("Before and after", `${run.scenes.length} frames of the clip that differ most`, viewer(run.scenes, { name: run.name }), loops);
}

function work() {
  return card(
    "Workers over time",
    "Speed above, one line for each worker below",
    timeline(run.history),
    folded(`As a table: ${count(run.history.lanes.length, "worker")}`, workersTable(run.history.lanes)),
  );
}

function time() {
  return card("Where the time went", verdict(summed(run.history.lanes)), stages(run.history.lanes));
}

function costs() {
  const [told, spent] = [run.estimate, run.spent];
  const hours = (number) => `${number < 0.1 ? number.toPrecision(2) : number.toFixed(2)} h`;
  const usd = (number) => `${number.toFixed(number < 1 ? 4 : 2)} USD`;
  const range = (found, show) => (found ? `${show(found.mid)} (${show(found.low)} to ${show(found.high)})` : "–");
  const devices = {};
  for (const lane of run.history.lanes) {
    const device = lane.device || "unknown";
    devices[device] = (devices[device] || 0) + Math.max(0, lane.stop_s - lane.start_s) / 3600;
  }
  const rows = [
    ["time", told && range(told.seconds, clock), clock(spent.seconds)],
    ["node hours", told && hours(told.node_hours), hours(spent.node_hours)],
    ["interruptions", told && String(Number(told.interruptions.toPrecision(2))), `${count(spent.interruptions)}, ${count(spent.shards_lost, "attempt")} lost`],
    ["cost", told && range(told.usd, usd), spent.usd === null ? "–" : usd(spent.usd)],
    ["devices", null, Object.entries(devices).map(([device, used]) => `${device}: ${hours(used)} of workers`).join(", ")],
  ];
  const body = rows.map(([name, before, after]) => el("tr", {}, el("th", { scope: "row" }, name), told ? el("td", {}, before || "") : null, el("td", {}, after)));
  const head = told ? el("thead", {}, el("tr", {}, ["", "estimated", "in the end"].map((text) => el("th", { scope: "col" }, text)))) : null;
  const note = told ? `Estimated for ${told.way}, from ${told.source}; ${told.prices}` : "No estimate was made before this run; `vsr plan` makes one";
  return card("What it took", note, el("table", { class: "facts", "aria-label": "What it took" }, head, el("tbody", {}, body)));
}

function quality() {
  const found = run.quality;
  if (!found) return null;
  return card(
    "Quality",
    `${count(found.frames, "frame")} compared with the original ${found.truth}`,
    tiles(
      tile("PSNR, luma (higher is closer)", `${found.psnr_db.toFixed(2)} dB`, `bicubic ${found.bicubic_psnr_db.toFixed(2)} dB`),
      tile("SSIM, luma (1 is equal)", found.ssim.toFixed(4), `bicubic ${found.bicubic_ssim.toFixed(4)}`),
      tile("worst frame", `${found.worst_psnr_db.toFixed(2)} dB`, `frame ${found.worst_frame}`),
    ),
  );
}

function proved() {
  const deep = run.verification;
  const found = [...run.checks];
  if (deep) {
    const title = deep.findings.length ? "vsr verify found differences" : "vsr verify agrees";
    const state = deep.findings.length ? "bad" : "good";
    found.push({ state, title, text: deep.lines.join(" ") });
  }
  const good = found.filter((check) => check.state === "good").length;
  return card("Verified", `${good} of ${found.filter((check) => check.state !== "note").length} checks passed`, checkList(found));
}

function ran() {
  const part = (title, rows) => el("div", {}, el("h3", {}, title), table(rows, title));
  return card(
    "What ran",
    `Fingerprint ${run.ran.fingerprint}: equal fingerprints make equal pictures`,
    el("div", { class: "columns" }, part("Input", run.ran.input), part("Output", run.ran.output), part("Model", run.ran.model)),
    folded("Versions and platform", table(run.ran.versions, "Versions and platform")),
    folded("Every setting that decides bytes", table(run.ran.settings, "Settings")),
  );
}

function again() {
  return card("Do it again", "The same input, settings and platform make the same file", copyable(run.again.command, "Command"), folded("As a job file", copyable(run.again.job, "Job file")));
}

function foot() {
  const made = new Date(1000 * run.made_s).toISOString().replace("T", " ").slice(0, 16);
  return el("footer", { class: "soft" }, `Made ${made} UTC from ${run.uri}. This page makes no network requests.`);
}

fill(document.getElementById("page"), head(), pictures(), work(), time(), costs(), quality(), proved(), ran(), again(), foot());
document.documentElement.dataset.ready = "true";

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
  const stops = history.breaks.length;
  const died = history.lanes.filter((lane) => lane.end === "died").length;
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
      tile("interruptions", count(stops), stops + died ? "nothing was lost" : "none"),
      run.output_bytes === null ? null : tile("output", bytes(run.output_bytes)),
    ),
  );
}

function pictures() {
  if (!run.scenes.length) return card("Before and after", null, el("p", { class: "soft" }, run.why_no_pictures));
  const loops = run.loops.length ? [el("h3", {}, "Moving"), moving(run.loops)] : [];
  return card("Before and after", `${run.scenes.length} frames of the clip that differ most`, viewer(run.scenes), loops);
}

function work() {
  return card(
    "Who did what, when",
    "Speed above, one line for each worker below",
    timeline(run.history),
    folded(`As a table: ${count(run.history.lanes.length, "worker")}`, workersTable(run.history.lanes)),
  );
}

function time() {
  return card("Where the time went", verdict(summed(run.history.lanes)), stages(run.history.lanes));
}

function costs() {
  const hours = {};
  for (const lane of run.history.lanes) {
    const device = lane.device || "unknown";
    hours[device] = (hours[device] || 0) + Math.max(0, lane.stop_s - lane.start_s) / 3600;
  }
  const used = Object.entries(hours).map(([device, spent]) => [device, `${spent < 0.1 ? spent.toPrecision(2) : spent.toFixed(2)} worker hours`]);
  const told = [["Estimated", run.estimate], ["In the end", run.cost]].filter(([, found]) => found);
  const note = told.length ? null : "No estimate was stored with this run";
  return card("What it took", note, el("div", { class: "columns" }, el("div", {}, el("h3", {}, "Measured"), table(used, "Measured")), told.map(([title, found]) => el("div", {}, el("h3", {}, title), table(flat(found), title)))));
}

function flat(found, before = "") {
  return Object.entries(found).flatMap(([key, value]) => {
    const name = (before + key).replace(/_/g, " ");
    if (value === null || value === "") return [];
    if (Array.isArray(value)) return [[name, value.map((each) => (each && typeof each === "object" ? flat(each).map(([k, v]) => `${k} ${v}`).join(", ") : each)).join("; ")]];
    if (typeof value === "object") return flat(value, `${name} `);
    return [[name, typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(4))) : String(value)]];
  });
}

function quality() {
  const found = run.quality;
  if (!found) return null;
  return card(
    "Quality",
    `${count(found.frames, "frame")} held against ${found.truth}`,
    tiles(
      tile("PSNR, luma", `${found.psnr_db.toFixed(2)} dB`, `bicubic ${found.bicubic_psnr_db.toFixed(2)} dB`),
      tile("SSIM, luma", found.ssim.toFixed(4), `bicubic ${found.bicubic_ssim.toFixed(4)}`),
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
  return card("Verified", `${good} of ${found.filter((check) => check.state !== "note").length} promises were seen to hold`, checkList(found));
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
  return el("footer", { class: "soft" }, `Made ${made} UTC from ${run.uri}. This page asks the network for nothing.`);
}

fill(document.getElementById("page"), head(), pictures(), work(), time(), costs(), quality(), proved(), ran(), again(), foot());
document.documentElement.dataset.ready = "true";

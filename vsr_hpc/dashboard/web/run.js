// One run as it goes.
import { card, clock, count, el, fill, percent, speed } from "./dom.js";
import { viewer } from "./slider.js";
import { timeline } from "./timeline.js";
import { stages, summed, verdict } from "./charts.js";
import { pill, progressBar, sizes, tile, tiles } from "./sections.js";

const LIVE = ["running", "starting", "planning", "merging", "waiting"];

export function runPage(page, number, listen, send) {
  const parts = {
    head: el("div", { class: "hero" }),
    trouble: el("p", { class: "trouble", role: "alert", hidden: true }),
    picture: el("div", {}),
    workers: el("ul", { class: "workers" }),
    stages: el("div", {}),
    verdict: el("p", { class: "soft" }),
    log: el("pre", { class: "code log", tabindex: "0", "aria-label": "Log" }),
  };
  const actions = el("div", { class: "actions" });
  const history = { start_s: 0, span_s: 1, lanes: [], bars: [], breaks: [], step_s: 1, fps: [] };
  const line = timeline(history);
  let failure = "";
  let shown = "";
  let pictured = "";
  let isAsking = false;
  fill(
    page,
    el("p", { class: "bar" }, el("a", { class: "back", href: "#" }, "← all runs"), actions),
    parts.head,
    parts.trouble,
    parts.picture,
    card("Workers", null, parts.workers),
    card("Workers over time", "Speed above, one line for each worker below", line),
    el("section", { class: "card", "aria-label": "Where the time goes" }, el("header", { class: "card-head" }, el("h2", {}, "Where the time goes"), parts.verdict), parts.stages),
    card("Log", "The last lines of all workers", parts.log),
  );

  async function ask(what) {
    failure = "";
    for (const button of actions.querySelectorAll("button")) button.disabled = true;
    try {
      await send(`api/runs/${number}/${what}`);
    } catch (error) {
      failure = error.message;
    }
    shown = "";
  }

  function button(text, kind, what) {
    return el("button", { type: "button", class: `button ${kind}`, onclick: () => ask(what) }, text);
  }

  function offer(run) {
    const key = [run.state, run.is_carried, run.report, run.output, failure].join();
    if (key === shown) return;
    shown = key;
    const isLive = LIVE.includes(run.state);
    const goesOn = ["incomplete", "cancelled", "poisoned"].includes(run.state) && !run.is_carried;
    fill(
      actions,
      run.report ? el("a", { class: "button", href: run.report, target: "_blank", rel: "noopener" }, "Report") : null,
      run.state === "complete" && run.output && !run.output.includes("://") ? el("a", { class: "button", href: `api/runs/${number}/output`, download: run.name }, "Download") : null,
      goesOn ? button("Resume", "primary", "resume") : null,
      isLive ? button("Cancel", "danger", "cancel") : null,
    );
  }

  // A finished frame before and after, and a newer one whenever more shards are done.
  async function look(run) {
    const key = `${run.shards_done} ${run.state === "complete"}`;
    if (isAsking || key === pictured || !run.shards_done) return;
    isAsking = true;
    try {
      const scene = await send(`api/runs/${number}/picture`, undefined, "GET");
      if (scene) fill(parts.picture, card("Latest finished frame", null, viewer([scene], { name: run.name })));
      pictured = key;
    } catch (error) {
      fill(parts.picture, card("Latest finished frame", null, el("p", { class: "soft" }, error.message)));
      pictured = key;
    } finally {
      isAsking = false;
    }
  }

  function told(run) {
    offer(run);
    if (run.history) look(run);
    const trouble = failure || run.trouble || run.poisoned?.map((each) => `shard ${each.shard}: ${each.reason}`).join("\n");
    parts.trouble.hidden = !trouble;
    parts.trouble.textContent = trouble || "";
    if (!run.history) return;
    head(run);
    fill(parts.workers, run.workers.filter((each) => each.state !== "left" || run.workers.length <= 24).map(worker));
    if (run.is_fresh) history.bars = []; // also after the connection broke: all of it comes again
    history.bars.push(...run.history.bars);
    Object.assign(history, { ...run.history, bars: history.bars });
    line.setHistory(history);
    parts.verdict.textContent = verdict(summed(history.lanes));
    fill(parts.stages, stages(history.lanes));
    logged(run.log);
    document.title = `${run.frames ? percent(run.frames_shown / run.frames) + " " : ""}${run.name} · vsr`;
    Object.assign(document.documentElement.dataset, { ready: "run", state: run.state });
  }

  function head(run) {
    const lead = [run.source_name, run.size_out ? sizes(run) : null, run.model ? `by ${run.model}` : null].filter(Boolean).join(", ");
    const alive = run.workers.filter((each) => !["dead", "left"].includes(each.state)).length;
    fill(
      parts.head,
      el("p", { class: "eyebrow" }, "live ", pill(run.state)),
      el("h1", {}, run.name),
      el("p", { class: "lead" }, lead),
      run.queue.length ? el("p", { class: "soft" }, run.queue.join(" · ")) : null,
      run.frames ? el("div", { class: "big shown" }, progressBar(run.frames_shown / run.frames, "Frames done")) : null,
      tiles(
        tile("frames", count(run.frames_shown), `of ${count(run.frames)}`),
        tile("speed", speed(run.fps || run.fps_overall), "frames a second"),
        tile("left", run.state === "complete" ? "0 s" : clock(run.eta_s)),
        tile("shards", count(run.shards_done), `of ${count(run.shards)}, ${run.shards_running} in hand`),
        tile("workers", count(alive), alive === run.workers.length ? null : `of ${run.workers.length} so far`),
      ),
    );
  }

  function worker(each) {
    const doing = each.shard === null ? each.state + (each.note ? ` (${each.note})` : "") : `shard ${each.shard}, frame ${each.shard_frames}`;
    return el(
      "li",
      { class: `worker ${each.state}` },
      el("b", { title: each.worker }, el("i", { class: "dot" }), each.worker),
      el("div", { class: "soft" }, doing),
      el("div", {}, `${count(each.frames, "frame")}, ${speed(each.fps)} fps`),
    );
  }

  function logged(lines) {
    const isAtEnd = parts.log.scrollTop + parts.log.clientHeight >= parts.log.scrollHeight - 8;
    const text = lines.length ? lines.join("\n") : "Nothing yet.";
    if (parts.log.textContent === text) return;
    parts.log.textContent = text;
    if (isAtEnd) parts.log.scrollTop = parts.log.scrollHeight;
  }

  const stop = listen(`api/runs/${number}/events`, told);
  return () => {
    stop();
    document.title = "vsr dashboard";
  };
}

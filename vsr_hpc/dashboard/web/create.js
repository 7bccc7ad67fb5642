// A new run: a clip comes in, one second of it is tried, then the whole is begun.
import { bytes, card, el, fill } from "./dom.js";
import { moving } from "./loops.js";
import { comparison, times } from "./preview.js";
import { progressBar } from "./sections.js";

const AT_ONCE = 3;
const TRIES = 4;

export function createPage(page, send) {
  const sending = { stop: () => {} };
  let setup = { models: [], place: "", is_s3: false };
  const file = el("input", { type: "file", "aria-label": "Clip", onchange: () => file.files.length && take(file.files[0]) });
  const dropText = el("span", { class: "soft" }, "or choose one");
  const drop = el("label", { class: "drop" }, file, el("b", {}, "Drop a clip here"), dropText);
  const upload = el("div", { class: "shown", hidden: true });
  const input = el("input", { type: "text", id: "input", autocomplete: "off", spellcheck: "false", placeholder: "/path/to/clip.mkv or s3://bucket/clip.mkv" });
  const output = el("input", { type: "text", autocomplete: "off", spellcheck: "false", placeholder: "beside the clip" });
  const model = el("select", { onchange: describe });
  const scale = el("input", { type: "number", min: "1", max: "16", step: "any", placeholder: "the model's own" });
  const size = el("input", { type: "text", placeholder: "or a size: 1920x1080", autocomplete: "off" });
  const at = el("input", { type: "text", placeholder: "a third into the clip", autocomplete: "off" });
  const where = el("select", {}, ["local", "slurm", "aws-batch"].map((name) => el("option", { value: name }, name)));
  const about = el("p", { class: "about soft" });
  const plan = el("p", { class: "plan", "aria-live": "polite", hidden: true });
  const trouble = el("p", { class: "trouble", role: "alert", hidden: true });
  const shown = el("div", { class: "shown", "aria-live": "polite" });
  const tryIt = el("button", { type: "button", class: "button", onclick: preview }, "Preview one second");
  const begin = el("button", { type: "button", class: "button primary", onclick: submit }, "Begin the whole run");
  const field = (text, control, kind) => el("label", kind ? { class: kind } : {}, text, control);
  fill(
    page,
    el("p", { class: "bar" }, el("a", { class: "back", href: "#" }, "← all runs")),
    el("header", { class: "hero" }, el("h1", {}, "New run")),
    card("Clip", null, drop, upload, el("div", { class: "form" }, field("or name one that this machine can read", input, "wide"))),
    card("Model", null, el("div", { class: "form" }, field("model", model), field("scale", scale), field("size", size), field("preview at", at), field("where", where), field("output", output, "wide")), about),
    el("div", { class: "card" }, plan, el("div", { class: "actions" }, tryIt, begin), trouble, shown),
  );
  page.addEventListener("input", foresee);
  addEventListener("dragover", over);
  addEventListener("dragleave", out);
  addEventListener("drop", dropped);
  start();

  async function start() {
    try {
      setup = await send("api/setup", undefined, "GET");
    } catch (error) {
      return said(error);
    }
    const auto = { name: "auto", description: "Takes the package's x2 network for up to twice the size, and its x4 network above.", licence: "Apache-2.0" };
    setup.models = [auto, ...setup.models];
    fill(model, setup.models.map((each) => el("option", { value: each.name }, each.scale ? `${each.name} (${each.is_filter ? "any factor" : "x" + each.scale})` : each.name)));
    model.value = "auto";
    dropText.textContent = `or choose one; it goes ${setup.is_s3 ? "straight to " : "to "}${setup.place}`;
    describe();
    document.documentElement.dataset.ready = "new";
  }

  function describe() {
    const chosen = setup.models.find((each) => each.name === model.value);
    about.textContent = chosen ? `${chosen.description} Licence: ${chosen.licence}.` : "";
  }

  let foreseen = 0;
  async function foresee() {
    const mine = ++foreseen;
    await new Promise((done) => setTimeout(done, 300));
    if (mine !== foreseen) return;
    const { at: _, ...job } = asked();
    let text = "";
    try {
      text = job.input ? (await send("api/description", job)).text : "";
    } catch (error) {
      text = error.message;
    }
    if (mine !== foreseen) return;
    plan.hidden = !text;
    plan.textContent = text;
  }

  function over(event) {
    event.preventDefault();
    drop.classList.add("over");
  }

  function out() {
    drop.classList.remove("over");
  }

  function dropped(event) {
    event.preventDefault();
    out();
    if (event.dataTransfer?.files.length) take(event.dataTransfer.files[0]);
  }

  function said(error) {
    trouble.hidden = !error;
    trouble.textContent = error ? error.message : "";
  }

  async function take(clip) {
    sending.stop();
    said(null);
    upload.hidden = false;
    const draw = (sent) => fill(upload, el("p", {}, `${clip.name}, ${bytes(sent)} of ${bytes(clip.size)}`), progressBar(clip.size ? sent / clip.size : 1, "Upload"));
    draw(0);
    begin.disabled = tryIt.disabled = true;
    try {
      input.value = setup.is_s3 ? await toS3(clip, draw) : await toFolder(clip, draw);
      fill(upload, el("p", {}, `${clip.name} is there: `, el("span", { class: "soft" }, input.value)));
      upload.dataset.done = "true";
      foresee();
    } catch (error) {
      upload.hidden = true;
      said(error);
    } finally {
      begin.disabled = tryIt.disabled = false;
    }
  }

  function put(address, body, moved) {
    return new Promise((done, failed) => {
      const request = new XMLHttpRequest();
      request.open("PUT", address);
      request.upload.onprogress = (event) => moved(event.loaded);
      request.onload = () => (request.status < 300 ? done(request.responseText) : failed(new Error(reason(request))));
      request.onerror = () => failed(new Error("the connection broke; drop the clip again"));
      request.onabort = () => failed(new Error("stopped"));
      sending.requests?.add(request);
      request.onloadend = () => sending.requests?.delete(request);
      request.send(body);
    });
  }

  function begun() {
    sending.requests = new Set();
    sending.stop = () => [...sending.requests].forEach((request) => request.abort());
  }

  async function toFolder(clip, draw) {
    begun();
    const answer = await put(`api/clips?name=${encodeURIComponent(clip.name)}`, clip, draw);
    return JSON.parse(answer).input;
  }

  async function toS3(clip, draw) {
    begun();
    const { upload: number, part_bytes, urls } = await send("api/uploads", { name: clip.name, size: clip.size });
    const sent = urls.map(() => 0);
    const left = urls.map((_, index) => index);
    const moved = () => draw(sent.reduce((sum, each) => sum + each, 0));
    const one = async () => {
      for (let index = left.shift(); index !== undefined; index = left.shift()) {
        const part = clip.slice(index * part_bytes, (index + 1) * part_bytes);
        for (let tried = 1; ; tried++) {
          try {
            await put(urls[index], part, (loaded) => ((sent[index] = loaded), moved()));
            break;
          } catch (error) {
            if (tried === TRIES || error.message === "stopped") throw error;
          }
        }
        sent[index] = part.size;
        moved();
      }
    };
    try {
      await Promise.all(Array.from({ length: AT_ONCE }, one));
    } catch (error) {
      sending.stop();
      await send(`api/uploads/${number}/abort`).catch(() => {});
      throw error;
    }
    return (await send(`api/uploads/${number}/complete`)).input;
  }

  function asked() {
    return { input: input.value.trim(), output: output.value.trim(), model: model.value, scale: scale.value ? Number(scale.value) : null, size: size.value.trim() || null, at: at.value.trim() || null, on: where.value };
  }

  async function preview() {
    said(null);
    if (!input.value.trim()) return said(new Error("drop a clip first, or name one"));
    tryIt.disabled = true;
    fill(shown, el("p", { class: "soft" }, "Making one second of it…"));
    try {
      const found = await send("api/preview", { ...asked(), output: "" });
      const [source, made] = [found.panes[0], found.panes[found.panes.length - 1]];
      const loop = made.strip ? [{ time_s: found.time_s, before: source.strip, after: made.strip, frames: made.frames, width: found.width, height: found.height, fps: found.fps }] : [];
      fill(shown, comparison(found), loop.length ? [el("h3", {}, "Moving"), moving(loop)] : null, el("h3", {}, "Time"), times(found));
      shown.dataset.done = "true";
    } catch (error) {
      fill(shown);
      said(error);
    } finally {
      tryIt.disabled = false;
    }
  }

  async function submit() {
    said(null);
    if (!input.value.trim()) return said(new Error("drop a clip first, or name one"));
    begin.disabled = true;
    try {
      const { at: _, ...job } = asked();
      location.hash = `run=${(await send("api/jobs", job)).id}`;
    } catch (error) {
      said(error);
    } finally {
      begin.disabled = false;
    }
  }

  return () => {
    sending.stop();
    removeEventListener("dragover", over);
    removeEventListener("dragleave", out);
    removeEventListener("drop", dropped);
    page.removeEventListener("input", foresee);
    foreseen++;
  };
}

function reason(request) {
  try {
    return JSON.parse(request.responseText).error;
  } catch {
    return `the server answered ${request.status}`;
  }
}

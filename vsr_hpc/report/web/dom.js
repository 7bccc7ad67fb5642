// Elements from values. Texts only ever become text nodes and attributes: nothing here parses HTML.

export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "class") made.className = value;
    else if (key === "style") Object.assign(made.style, value);
    else made.setAttribute(key, value === true ? "" : String(value));
  }
  put(made, ...children);
  return made;
}

export function put(parent, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child instanceof Node ? child : String(child));
  }
  return parent;
}

export function fill(parent, ...children) {
  parent.replaceChildren();
  return put(parent, ...children);
}

export function card(title, note, ...children) {
  const id = "s-" + title.toLowerCase().replace(/[^a-z]+/g, "-");
  return el(
    "section",
    { class: "card", "aria-labelledby": id },
    el("header", { class: "card-head" }, el("h2", { id }, title), note ? el("p", { class: "soft" }, note) : null),
    children,
  );
}

export function clock(seconds) {
  if (seconds === null || seconds === undefined || !isFinite(seconds)) return "–";
  if (seconds < 10) return seconds.toFixed(1) + " s";
  const whole = Math.round(seconds);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  if (h) return `${h} h ${String(m).padStart(2, "0")} min`;
  return m ? `${m} min ${String(s).padStart(2, "0")} s` : `${s} s`;
}

export function place(seconds) {
  const whole = Math.floor(seconds);
  const [h, m] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const rest = (seconds - h * 3600 - m * 60).toFixed(1).padStart(4, "0");
  return h ? `${h}:${String(m).padStart(2, "0")}:${rest}` : `${m}:${rest}`;
}

export function count(number, noun) {
  const shown = number.toLocaleString("en");
  return noun ? `${shown} ${noun}${number === 1 ? "" : "s"}` : shown;
}

export function bytes(number) {
  for (const [unit, of] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (number >= of) return `${(number / of).toFixed(1)} ${unit}`;
  }
  return `${number} bytes`;
}

export function percent(share) {
  return `${Math.round(100 * share)} %`;
}

export function speed(fps) {
  return fps >= 100 ? fps.toFixed(0) : fps >= 10 ? fps.toFixed(1) : fps.toFixed(2);
}

export function isStill() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

export function colours(...names) {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue("--" + name).trim()]));
}

export function onTheme(redraw) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

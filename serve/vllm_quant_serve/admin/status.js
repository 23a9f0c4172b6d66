"use strict";
// The page over /status. Everything that a server says goes into text nodes.
const $ = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const LINES = ["first", "second", "third"];
const MOODS = { ready: "good", unhealthy: "bad", hung: "bad", stopped: "bad" };
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
let latest = null;

function node(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}
function shape(tag, attributes, ...content) {
  const made = document.createElementNS(SVG, tag);
  for (const name in attributes) made.setAttribute(name, attributes[name]);
  made.append(...content);
  return made;
}
function swatch(look) {
  return shape("svg", { class: "swatch", viewBox: "0 0 11 11", "aria-hidden": "true" },
    shape("rect", { width: 11, height: 11, rx: 2, class: look }));
}
function known(n) { return n !== undefined && n !== null; }
function bytes(n) {
  if (!known(n)) return "\u2013";
  let unit = 0;
  while (n >= 1024 && unit < UNITS.length - 1) { n /= 1024; unit += 1; }
  return `${n.toFixed([0, 1, 1, 2, 2][unit])} ${UNITS[unit]}`;
}
function figure(n) {
  if (!known(n)) return "\u2013";
  return n >= 100 || Number.isInteger(n) ? Math.round(n).toLocaleString("en") : n.toPrecision(3);
}
function span(seconds) {
  if (!known(seconds)) return "";
  const h = Math.floor(seconds / 3600), m = Math.floor(seconds % 3600 / 60), s = Math.floor(seconds % 60);
  return h ? `${h} h ${m} min` : m ? `${m} min` + (s ? ` ${s} s` : "") : `${s} s`;
}

function bar(label, parts, total) {
  const svg = shape("svg", { class: "bar", role: "img", "aria-label": label });
  let x = 0;
  for (const [name, value, look] of parts) {
    if (!value) continue;
    const width = 100 * value / total;
    svg.append(shape("rect", { x: `${x}%`, width: `${width}%`, y: 0, height: "100%", class: look },
      shape("title", {}, `${name}: ${bytes(value)}`)));
    x += width;
  }
  return svg;
}
function memory(status) {
  const box = $("memory"), plan = status.plan, actual = status.actual;
  box.replaceChildren();
  if (!plan || !plan.memory_total) { box.append(node("p", "launched without a plan", "dim")); return; }
  const total = plan.memory_total;
  const planned = [["weights", plan.weight_bytes_per_rank, "weights"],
    ["overhead", plan.overhead_bytes.value, "overhead"], ["KV cache", plan.kv_bytes.value, "cache"]];
  box.append(node("p", "the plan", "axis"), bar("memory as planned", planned, total));
  const taken = [["weights", actual.weight_bytes, "weights"], ["KV cache", actual.kv_bytes, "cache"]];
  if (taken.some(part => part[1])) {
    box.append(node("p", "what the engine's log reports", "axis"), bar("memory as reported", taken, total));
  }
  const key = node("div", undefined, "key");
  for (const [name, value, look] of [...planned, ["device", total, "unused"]]) {
    const entry = node("span");
    entry.append(swatch(look), `${name} ${bytes(value)}`);
    key.append(entry);
  }
  box.append(key);
}
function figures(status) {
  const plan = status.plan && status.plan.kv_tokens ? status.plan : undefined, actual = status.actual;
  const row = (kind, texts) => {
    const tr = node("tr");
    texts.forEach((text, i) => tr.append(node(i && kind === "td" ? "td" : "th", text, i ? "number" : undefined)));
    return tr;
  };
  const line = (name, planned, got, show) => {
    const off = planned && known(got) ? 100 * (got - planned) / planned : undefined;
    const shown = off === undefined ? "\u2013" : (off > 0 ? "+" : "") + off.toFixed(1);
    return row("td", [name, show(planned), show(got), shown]);
  };
  const head = node("thead"), body = node("tbody");
  head.append(row("th", ["", "plan", "actual", "off by, %"]));
  body.append(
    line("weights per rank", plan && plan.weight_bytes_per_rank, actual.weight_bytes, bytes),
    line("KV cache", plan && plan.kv_bytes.value, actual.kv_bytes, bytes),
    line("KV tokens", plan && plan.kv_tokens.value, actual.kv_tokens, figure),
    line("load, s", undefined, status.load_seconds, figure));
  $("figures").replaceChildren(head, body);
}

// Labels from 0 in equal steps of 1, 2 or 5 times a power of ten, the last not below `high`.
function ticks(high, most) {
  const least = (high > 0 ? high : 1) / most, power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map(m => m * power).find(m => m >= least * (1 - 1e-9));
  const count = Math.ceil((high > 0 ? high : 1) / step * (1 - 1e-8)), digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return Array.from({ length: count + 1 }, (_, i) => ({ value: i * step, label: (i * step).toLocaleString("en",
    { minimumFractionDigits: digits, maximumFractionDigits: digits }) }));
}
function ago(seconds) { return seconds >= 3600 ? `${seconds / 3600} h` : seconds >= 60 ? `${seconds / 60} min` : `${seconds} s`; }

// Series: [name, key in the samples, factor]. The plot is laid out for the width that it has.
function chart(id, samples, series, high) {
  const box = $(id), present = series.filter(one => samples.some(sample => known(sample[one[1]])));
  if (!present.length) { box.replaceChildren(node("p", "no figures yet", "dim")); return; }
  const width = Math.max(box.clientWidth, 240), height = 168, left = 46, right = 10, top = 10, bottom = 24;
  for (const [, key, factor] of present) for (const s of samples) if (known(s[key])) high = Math.max(high || 0, s[key] * factor);
  const marks = ticks(high, 4), most = marks[marks.length - 1].value;
  const last = samples[samples.length - 1].time;
  const lasting = Math.max(last - samples[0].time, 60), first = last - lasting;
  const x = t => left + (width - left - right) * (t - first) / lasting;
  const y = v => top + (height - top - bottom) * (1 - v / most);
  const svg = shape("svg", { width, height, role: "img", "aria-label":
    present.map(([name, key, factor]) => `${name}: ${figure(factor * samples.findLast(s => known(s[key]))[key])}`).join(", ") });
  for (const { value, label } of marks) {
    svg.append(shape("line", { class: value ? "grid" : "base", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      shape("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, label));
  }
  const wanted = [10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600];
  const every = wanted.find(step => lasting / step <= Math.max(2, Math.floor(width / 110))) || 3600;
  for (let back = 0; back <= lasting; back += every) {
    const at = x(last - back), anchor = back === 0 ? "end" : at < left + 16 ? "start" : "middle";
    svg.append(shape("line", { class: "base", x1: at, x2: at, y1: y(0), y2: y(0) + 4 }),
      shape("text", { x: at, y: height - 4, "text-anchor": anchor }, back === 0 ? "now" : "\u2212" + ago(back)));
  }
  const key = node("div", undefined, "key");
  present.forEach(([name, field, factor], index) => {
    let path = "", pen = false;
    for (const sample of samples) {
      if (!known(sample[field])) { pen = false; continue; }
      path += `${pen ? "L" : "M"}${x(sample.time).toFixed(1)},${y(sample[field] * factor).toFixed(1)}`;
      pen = true;
    }
    svg.append(shape("path", { d: path, class: `line ${LINES[index]}` }));
    const entry = node("span");
    entry.append(swatch(`line ${LINES[index]}`), name);
    key.append(entry);
  });
  box.replaceChildren(svg, key);
}

function verdict(status, now) {
  const state = $("state"), parts = [];
  state.textContent = status.state;
  $("verdict").className = `verdict ${MOODS[status.state] || "warn"}`;
  if (known(status.ready_seconds)) parts.push(`for ${span(status.ready_seconds)}`);
  if (known(status.in_flight)) parts.push(`${status.in_flight} request${status.in_flight === 1 ? "" : "s"} in flight`);
  if (known(now.generation_rate)) parts.push(`${figure(now.generation_rate)} tokens/s`);
  const newest = status.events[status.events.length - 1];
  if (status.state !== "ready" && newest) parts.push(newest.message.split("\n")[0]);
  $("since").textContent = parts.length ? " " + parts.join(", ") + (status.state === "ready" ? "." : "") : "";
}
function show(status) {
  const samples = status.history, now = samples[samples.length - 1] || {};
  latest = status;
  document.title = `${status.state}: ${status.model}`;
  $("model").textContent = status.model.replace(/\/+$/, "").split("/").pop() || status.model;
  $("url").textContent = `${status.url}/v1` + (status.model.includes("/") ? `, ${status.model}` : "");
  $("command").textContent = status.command;
  $("generation").textContent = figure(now.generation_rate);
  $("prompt").textContent = figure(now.prompt_rate);
  $("flight").textContent = figure(status.in_flight);
  $("usage").textContent = known(now.kv_usage) ? (100 * now.kv_usage).toFixed(1) : "\u2013";
  const times = status.ttft;
  $("ttft").textContent = times ? "first token, at the client: " + ["p50", "p95", "p99"].map(q =>
    `${q} ${figure(1e3 * times[q])} ms`).join(", ") + ` (${figure(times.answers)} streamed answer${times.answers === 1 ? "" : "s"})` : "";
  $("made").textContent = (status.version ? `vllm-quant ${status.version}, ` : "") + new Date().toLocaleString("en-GB",
    { dateStyle: "long", timeStyle: "medium" });
  verdict(status, now);
  memory(status);
  figures(status);
  charts(status);
  $("events").replaceChildren(...status.events.slice().reverse().map(event => {
    const entry = node("li");
    entry.append(node("time", new Date(event.time * 1000).toLocaleTimeString("en-GB")), node("span", event.message));
    return entry;
  }));
}
function charts(status) {
  const samples = status.history;
  chart("tokens", samples, [["generated", "generation_rate", 1], ["prompt", "prompt_rate", 1]]);
  chart("latency", samples, [["first token, at the client", "ttft", 1e3], ["per output token", "tpot", 1e3]]);
  chart("requests", samples, [["running", "running", 1], ["waiting", "waiting", 1]]);
  chart("utilization", samples, [["KV cache", "kv_usage", 100], ["memory bandwidth", "bandwidth_utilization", 100],
    ["arithmetic", "flops_utilization", 100]], 100);
}

addEventListener("resize", () => { if (latest) charts(latest); });
async function poll() {
  try {
    const answer = await fetch("status");
    if (!answer.ok) throw new Error(answer.status);
    show(await answer.json());
  } catch (error) {
    $("state").textContent = "no answer from the supervisor";
    $("since").textContent = latest ? "; the figures below are the last that it gave." : "";
    $("verdict").className = "verdict bad";
  }
  setTimeout(poll, 2500);
}
poll();

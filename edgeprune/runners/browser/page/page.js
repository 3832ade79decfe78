// Fetches jobs, does each in a fresh web worker, posts the answers, and shows a person what goes on.

const $ = (id) => document.getElementById(id);
const KINDS = { wasm: "WebAssembly on the processor", webgpu: "WebGPU on the graphics processor", webnn: "WebNN" };
const WORDS = { environment: "Looking at this browser", placement: "Comparing outputs", latency: "Timing" };
const FACTS = ["Networks", "Input", "Runs as", "Nodes", "Outputs", "Adapter", "Clock", "Browser"];

// A page that is loaded anew in the same tab keeps its name, so that the other side knows it again.
const page = sessionStorage.getItem(location.pathname) ?? name_of_page();
let hidden = document.hidden;
let wake = null;
const fetched = new Map();

function name_of_page() {
  const name = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  sessionStorage.setItem(location.pathname, name);
  return name;
}

$("start").addEventListener("click", start);
if (location.hash === "#start") start();

async function start() {
  $("ready").hidden = true;
  $("work").hidden = false;
  $("title").textContent = "Measuring";
  $("lead").hidden = true;
  stay_awake();
  document.addEventListener("visibilitychange", () => {
    hidden ||= document.hidden;
    if (!document.hidden) stay_awake();
  });
  addEventListener("pagehide", () => navigator.sendBeacon("leave", JSON.stringify({ page })));
  try {
    await work();
  } catch (reason) {
    end("Not measured", String(reason.message ?? reason));
  }
}

async function stay_awake() {
  try {
    wake = await navigator.wakeLock?.request("screen");
  } catch { /* the battery is low, or the page is hidden */ }
}

async function work() {
  let have = 0;
  for (;;) {
    const { job, status, ended } = await post("next", { have });
    show_status(status);
    if (ended) return show_end(ended);
    if (!job) continue;
    have = job.id;
    // Not awaited: asking for the next job meanwhile tells the other side that the page is there.
    do_job(job).then((answer) => post("answer", { id: job.id, answer })).catch((reason) => end("Not measured", reason.message));
  }
}

async function post(path, message) {
  for (let attempt = 0; ; attempt++) {
    let response;
    try {
      response = await fetch(path, { method: "POST", body: JSON.stringify({ page, ...message }) });
    } catch {
      if (attempt === 10) throw new Error("The other side does not answer any more. Start the measurement there again.");
      await new Promise((resolve) => setTimeout(resolve, 1000));
      continue;
    }
    if (response.status === 409) throw new Error("Another browser is being measured, or the measurement is over. Start it again on the other side.");
    if (!response.ok) throw new Error(`The other side refused (${response.status}). Start the measurement there again.`);
    return response.json();
  }
}

// --- jobs ---------------------------------------------------------------------------------------------------

async function do_job(job) {
  const part = / \d+ of \d+$/.exec($("now").textContent)?.[0] ?? "";
  $("now").textContent = `${WORDS[job.job] ?? "Working"}${part && `, part${part}`}`;
  show_job(job);
  try {
    for (;;) {
      await visible();
      hidden = false;
      const answer = await in_fresh_worker(job);
      // A hidden page runs on a slow core, or not at all: its times are of no use.
      if (!hidden || job.job !== "latency") {
        show_answer(job, answer);
        return answer;
      }
      warn("The page was out of sight, so this part starts again. Keep it in front.");
    }
  } catch (reason) {
    return { error: { kind: "worker", message: String(reason.message ?? reason), hint: "", model: "" } };
  }
}

function visible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => {
    document.addEventListener("visibilitychange", () => document.hidden || resolve(), { once: true });
  });
}

async function in_fresh_worker(job) {
  const models = await Promise.all(job.models.map(async (model) => ({
    ...model,
    bytes: await bytes_of(model.url),
    inputs: await with_bytes(model.inputs),
    outputs: job.job === "placement" ? await with_bytes(model.outputs) : [],
  })));
  const library = { script: new URL("ort.mjs", location.href).href, wasm: await bytes_of("ort.wasm") };
  const worker = new Worker(new URL("worker.js", location.href), { type: "module" });
  try {
    return await new Promise((resolve, reject) => {
      worker.onmessage = ({ data }) => resolve(data.answer);
      worker.onerror = (event) => reject(new Error(`the web worker broke (${event.message ?? "no reason given"})`));
      worker.postMessage({ job: { ...job, models }, library });
    });
  } finally {
    worker.terminate();
  }
}

const with_bytes = (values) => Promise.all(values.map(async (value) => ({ ...value, bytes: await bytes_of(value.url) })));

async function bytes_of(url) {
  if (!fetched.has(url)) {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`could not fetch ${url} (${response.status})`);
    fetched.set(url, await response.arrayBuffer());
  }
  return fetched.get(url);
}

// --- what a person sees -------------------------------------------------------------------------------------

function show_status({ done, total, text }) {
  if (!total) return;
  const share = Math.min(100, Math.round((100 * done) / total));
  $("filled").style.width = `${share}%`;
  $("bar").setAttribute("aria-valuenow", share);
  $("share").textContent = `${share} %`;
  $("now").textContent = text.charAt(0).toUpperCase() + text.slice(1);
}

function show_job(job) {
  const threads = job.backend === "wasm" ? `, ${job.threads} thread${job.threads > 1 ? "s" : ""}` : "";
  fact("Runs as", `${KINDS[job.backend]}${threads}`);
  if (job.models.length) fact("Networks", names(job.models.map((model) => model.name)));
  if (job.models.length) fact("Input", job.models[0].inputs.map((value) => `${value.shape.join(" × ")} ${value.dtype}`).join(", "));
}

let known_names = [];
function names(more) {
  known_names = [...new Set([...known_names, ...more])];
  return known_names.join(", ");
}

let worst = 0;
const nodes_of = new Map();
function show_answer(job, answer) {
  if (answer.error) return;
  if (job.job === "environment") {
    if (answer.gpu) fact("Adapter", answer.gpu + (answer.software_adapter ? " (software: a test of function, no figure)" : ""));
    fact("Clock", `steps of ${Number((1000 * answer.clock_step_ms).toPrecision(2))} µs`);
    fact("Browser", answer.browser || answer.platform);
    if (!answer.cross_origin_isolated) warn("This page is not isolated: the clock is coarse, and there are no threads.");
  }
  if (job.job === "placement") {
    worst = Math.max(worst, answer.difference ?? Infinity);
    const nodes = Object.entries(answer.nodes).map(([provider, count]) => `${count} by ${provider.replace("ExecutionProvider", "")}`);
    nodes_of.set(job.models[0].name, nodes.join(", "));
    fact("Nodes", [...new Set(nodes_of.values())].length === 1 ? nodes.join(", ") : [...nodes_of].map((pair) => pair.join(": ")).join("; "));
    fact("Outputs", `differ from the other machine's by ${worst.toPrecision(2)} of the largest`);
  }
}

function fact(name, text) {
  $("measured").hidden = false;
  let row = $("facts").querySelector(`[data-name="${name}"]`);
  if (!row) {
    row = document.createElement("div");
    row.dataset.name = name;
    row.append(document.createElement("dt"), document.createElement("dd"));
    row.firstChild.textContent = name;
    const later = [...$("facts").children].find((other) => FACTS.indexOf(other.dataset.name) > FACTS.indexOf(name));
    $("facts").insertBefore(row, later ?? null);
  }
  row.lastChild.textContent = text;
}

function warn(text) {
  $("warning").hidden = false;
  $("warning").textContent = text;
}

function show_end({ error, result }) {
  if (error) return end("Not measured", error);
  const medians = result.medians ?? [];
  if (!medians.length) return end("Done", "You can close this page.");
  const longest = Math.max(...medians.map((one) => one.seconds));
  const dense = medians.length > 1 ? medians.at(-1) : null;
  for (const one of medians) {
    const row = document.createElement("div");
    row.className = one === dense ? "network dense" : "network";
    const text = document.createElement("p");
    text.append(document.createElement("span"), document.createElement("span"));
    text.firstChild.textContent = one.name;
    text.lastChild.textContent = one.text;
    const length = document.createElement("div");
    length.className = "length";
    length.style.width = `${(100 * one.seconds) / longest}%`;
    row.append(text, length);
    $("medians").append(row);
  }
  let verdict = "";
  if (result.ratio) {
    const [value, low, high] = result.ratio;
    $("ratio").hidden = false;
    $("ratio").textContent = value.toFixed(2);
    const kind = high < 1 ? "good" : low > 1 ? "bad" : "open";
    $("ratio").classList.add(kind);
    const what = { good: "is faster", bad: "is slower", open: "cannot be told from it" }[kind];
    verdict = `of the dense network's time, between ${low.toFixed(2)} and ${high.toFixed(2)}: `
      + (kind === "open" ? `the slim network ${what}.` : `the slim network ${what} on this device.`);
  }
  $("fine").textContent = `Medians of one inference, over ${result.processes} fresh web workers. The full measurement is on the machine that showed the address.`;
  end("Measured", verdict, true);
}

function end(title, text, good = false) {
  $("title").textContent = title;
  $("verdict").textContent = good ? text : text.charAt(0).toUpperCase() + text.slice(1);
  $("verdict").className = good ? "" : "bad";
  $("work").hidden = true;
  $("outcome").hidden = false;
  $("fine").textContent += " You can close this page.";
  wake?.release?.();
}

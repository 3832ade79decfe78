// Does one job of edgeprune in a fresh web worker, on onnxruntime-web. The counterpart of runners/worker.

const BLOCK = 5; // timed samples between two switches of models
const WARM_UP = 5; // inferences, and
const WARM_UP_MS = 300; // at least so long: the browser compiles in two tiers
const FINE = 50; // steps of the clock that a sample must last
const CPU = "CPUExecutionProvider";
const SOFTWARE = /swiftshader|llvmpipe|lavapipe|softpipe|software|basic render|\bwarp\b/i;
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array, int16: Int16Array,
  uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
  bool: Uint8Array, float16: Uint16Array,
};

// The model that runners/worker/session.py warms onnxruntime with, so that none of the networks pays for that.
const WARM_MODEL = [
  "CAc63wIKFwoBcxIBdyIPQ29uc3RhbnRPZlNoYXBlChcKAWQSAXYiD0NvbnN0YW50T2ZTaGFwZQoXCgFmEgFtIg9Db25zdGFudE9mU2hh",
  "cGUKIgoBeAoBdxIBYSIEQ29udioRCgRwYWRzQAFAAUABQAGgAQcKDAoBYRIBYiIEUmVsdQowCgFiCgF2EgFjIgRDb252KgwKBWdyb3Vw",
  "GBCgAQIqEQoEcGFkc0ABQAFAAUABoAEHCg4KAWIKAWMSAWUiA0FkZAoZCgFlEgFnIhFHbG9iYWxBdmVyYWdlUG9vbAoPCgFnEgFoIgdG",
  "bGF0dGVuCg8KAWgKAW0SAXkiBEdlbW0SBHdhcm0qDQgEEAc6BBAQAwNCAXMqDQgEEAc6BBABAwNCAWQqCwgCEAc6AhAKQgFmWhsKAXgS",
  "FgoUCAESEAoCCAEKAggQCgIICAoCCAhiEwoBeRIOCgwIARIICgIIAQoCCApCBAoAEA0=",
].join("");

class Fault extends Error {
  constructor(kind, message, hint = "", model = "") {
    super(message);
    Object.assign(this, { kind, hint, model });
  }
}

// onnxruntime-web prints its profile; and it says there, and nowhere else, that it fell back to one thread.
const printed = [];
for (const level of ["log", "info", "warn", "error", "debug"]) {
  console[level] = (...parts) => printed.push(parts.join(" "));
}
let threadsStarted = 0;
self.Worker = class extends self.Worker {
  constructor(...parts) {
    super(...parts);
    threadsStarted += 1;
  }
};

self.onmessage = async ({ data }) => {
  try {
    self.postMessage({ answer: await JOBS[data.job.job](data) });
  } catch (reason) {
    const kind = reason instanceof Fault ? reason.kind : "worker";
    const { hint = "", model = "" } = reason;
    self.postMessage({ answer: { error: { kind, message: plain(reason), hint, model } } });
  }
};

function plain(reason) {
  return String(reason?.message ?? reason).replace(/\[ONNXRuntimeError\] : \d+ : \w+ : |\S+\.(cc|h):\d+ \S+ /g, "").slice(0, 400);
}

// --- what runs here -----------------------------------------------------------------------------------------

async function environment({ job, library }) {
  await open_library(job, library);
  const adapter = job.backend === "webgpu" ? await adapter_info() : null;
  return {
    browser: navigator.userAgentData?.brands?.filter((b) => !/not.?a.?brand/i.test(b.brand)).map((b) => `${b.brand} ${b.version}`).join(", ") || "",
    platform: navigator.userAgent,
    machine: navigator.userAgentData?.platform ?? "",
    cores: navigator.hardwareConcurrency || 1,
    gpu: adapter?.text ?? null,
    software_adapter: adapter?.software ? adapter.text : "",
    cross_origin_isolated: self.crossOriginIsolated,
    clock_step_ms: clock_step_ms(),
    providers: [CPU, ...(navigator.gpu ? ["WebGpuExecutionProvider"] : []), ...(navigator.ml ? ["WebNNExecutionProvider"] : [])],
  };
}

async function adapter_info() {
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) throw new Fault("provider", "absent: the browser has no GPU adapter");
  return described(adapter.info ?? {}, adapter);
}

function described(info, adapter = {}) {
  const text = [info.vendor, info.architecture, info.device, info.description].filter(Boolean).join(" ") || "unnamed";
  const fallback = info.isFallbackAdapter ?? adapter.isFallbackAdapter ?? false;
  return { text, software: fallback || SOFTWARE.test(text) };
}

function clock_step_ms() {
  let least = Infinity;
  for (let k = 0; k < 20; k++) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    least = Math.min(least, now - start);
  }
  return least;
}

async function open_library(job, library) {
  if (job.threads > 1 && !self.crossOriginIsolated) {
    throw new Fault("provider", `asked for ${job.threads} threads, which this page may not have`,
      "Threads need a page from localhost or over HTTPS, in a browser from 2022 or later.");
  }
  if (job.backend === "webgpu" && !navigator.gpu) {
    const why = self.isSecureContext ? "this browser has no WebGPU" : "the page is neither from localhost nor over HTTPS";
    throw new Fault("provider", `absent: ${why}`, "CPUExecutionProvider is WebAssembly, which every browser has.");
  }
  if (job.backend === "webnn" && !navigator.ml) {
    throw new Fault("provider", "absent: this browser has no WebNN", "Chrome and Edge have it behind a flag.");
  }
  const ort = await import(library.script);
  ort.env.wasm.numThreads = job.threads;
  ort.env.wasm.wasmBinary = library.wasm;
  return ort;
}

async function open_session(ort, job, model, extra = {}) {
  const provider = { name: job.backend, ...job.provider_options };
  try {
    return await ort.InferenceSession.create(new Uint8Array(model.bytes), { executionProviders: [provider], ...extra });
  } catch (reason) {
    const kind = job.backend === "wasm" ? "model" : "provider";
    throw new Fault(kind, `unable to load ${model.name} (${plain(reason)})`, "", model.name);
  }
}

// The profile sees one inference. That also tells whether threads were started.
async function placement({ job, library }) {
  const ort = await open_library(job, library);
  const [model] = job.models;
  const session = await open_session(ort, job, model, { enableProfiling: true, logSeverityLevel: 3 });
  if (threadsStarted < job.threads - 1) {
    throw new Fault("provider", `asked for ${job.threads} threads and started ${threadsStarted + 1}`);
  }
  const outputs = await run_once(session, model, feeds(ort, model));
  // The device that onnxruntime-web has really taken; asking the browser for one may give another.
  const taken = job.backend === "webgpu" ? described((await ort.env.webgpu.device)?.adapterInfo ?? {}) : null;
  printed.length = 0;
  session.endProfiling();
  const kernels = profiled(printed);
  if (!kernels.length) throw new Fault("provider", "running without a profile, which alone tells what ran where");
  const nodes = {};
  for (const kernel of kernels) nodes[kernel.provider] = (nodes[kernel.provider] ?? 0) + 1;
  const left = job.provider === CPU ? [] : kernels.filter((kernel) => kernel.provider === CPU);
  await session.release();
  return {
    nodes,
    left_to_cpu: left.map(({ name, op_type }) => ({ name, op_type })),
    difference: await largest_difference(model, outputs),
    software_adapter: taken?.software ? taken.text : "",
    ...(await how_often(ort, job, model, taken?.software)),
  };
}

function profiled(lines) {
  const events = [];
  for (const line of lines.join("\n").split("\n")) {
    const text = line.trim().replace(/^\[/, "").replace(/,?\]?$/, "");
    if (!text.startsWith("{")) continue;
    try {
      events.push(JSON.parse(text));
    } catch { /* a line of the log */ }
  }
  const end = "_kernel_time";
  return events
    .filter((event) => event.cat === "Node" && event.name.endsWith(end))
    .map(({ name, args }) => ({ provider: args.provider, name: name.slice(0, -end.length), op_type: args.op_name }));
}

// How many inferences make a sample, so that the steps of the clock do not show.
async function how_often(ort, job, model, is_software) {
  const step = clock_step_ms();
  if (is_software) return { repeat: 1, clock_step_ms: step }; // it will not be timed
  const session = await open_session(ort, job, model);
  const feed = feeds(ort, model);
  await warm(session, feed);
  const start = performance.now();
  for (let k = 0; k < WARM_UP; k++) await session.run(feed);
  const one = (performance.now() - start) / WARM_UP;
  await session.release();
  return { repeat: Math.min(1000, Math.max(1, Math.ceil((FINE * step) / Math.max(one, step / 100)))), clock_step_ms: step };
}

// ABBA, one run thrown away after each switch, in blocks: as the worker does it.
async function latency({ job, library }) {
  const ort = await open_library(job, library);
  await warm_library(ort, job);
  const opened = [];
  for (const model of job.models) {
    let start = performance.now();
    const session = await open_session(ort, job, model);
    const load = performance.now() - start;
    const feed = feeds(ort, model);
    start = performance.now();
    await run_once(session, model, feed);
    opened.push({ session, feed, repeat: model.repeat ?? 1, load_ns: ns(load), first_ns: ns(performance.now() - start), samples_ns: [] });
  }
  for (const { session, feed } of opened) await warm(session, feed);
  const turns = [...opened, ...[...opened].reverse()];
  const deadline = performance.now() + 1000 * job.seconds;
  const enough = () => opened[0].samples_ns.length;
  while (enough() < job.runs && (enough() < job.min_runs || performance.now() < deadline)) {
    for (const { session, feed, repeat, samples_ns } of turns) {
      await session.run(feed);
      for (let k = 0; k < BLOCK; k++) {
        const start = performance.now();
        for (let r = 0; r < repeat; r++) await session.run(feed);
        samples_ns.push(ns((performance.now() - start) / repeat));
      }
    }
  }
  return { models: opened.map(({ load_ns, first_ns, samples_ns }) => ({ load_ns, first_ns, samples_ns })) };
}

async function warm_library(ort, job) {
  const bytes = Uint8Array.from(atob(WARM_MODEL), (character) => character.charCodeAt(0));
  const session = await open_session(ort, job, { name: "a trivial model", bytes });
  await session.run({ x: new ort.Tensor("float32", new Float32Array(1024).fill(0.5), [1, 16, 8, 8]) });
  await session.release();
}

async function warm(session, feed) {
  const start = performance.now();
  for (let k = 0; k < WARM_UP || performance.now() - start < WARM_UP_MS; k++) await session.run(feed);
}

async function run_once(session, model, feed) {
  try {
    return await session.run(feed);
  } catch (reason) {
    throw new Fault("model", `failing when it runs in the browser (${plain(reason)})`, "", model.name);
  }
}

const ns = (ms) => Math.max(1, Math.round(1e6 * ms));

// --- numbers ------------------------------------------------------------------------------------------------

function feeds(ort, model) {
  return Object.fromEntries(model.inputs.map((value) => [
    value.name, new ort.Tensor(value.dtype, view(value), value.shape),
  ]));
}

function view({ dtype, bytes }) {
  // A browser with Float16Array takes nothing else for float16.
  const type = dtype === "float16" && self.Float16Array ? self.Float16Array : ARRAYS[dtype];
  return new type(bytes);
}

// max |browser - CPU| / max |CPU| over all outputs; null if there is no such number.
async function largest_difference(model, outputs) {
  let worst = 0;
  for (const value of model.outputs) {
    const found = outputs[value.name];
    const data = await found?.getData?.();
    const wanted = view(value);
    if (!data || data.length !== wanted.length || found.dims.join() !== value.shape.join()) return null;
    const [a, b] = [numbers(data, value.dtype), numbers(wanted, value.dtype)];
    let [difference, scale] = [0, 0];
    for (let k = 0; k < a.length; k++) {
      if (Object.is(a[k], b[k]) || a[k] === b[k]) {
        if (Number.isFinite(b[k])) scale = Math.max(scale, Math.abs(b[k]));
        continue;
      }
      const gap = Math.abs(a[k] - b[k]);
      if (!Number.isFinite(gap)) return null;
      difference = Math.max(difference, gap);
      scale = Math.max(scale, Math.abs(b[k]));
    }
    worst = Math.max(worst, difference / (scale || 1));
  }
  return worst;
}

function numbers(array, dtype) {
  if (dtype === "float16" && array instanceof Uint16Array) return Array.from(array, half);
  return typeof array[0] === "bigint" ? Array.from(array, Number) : array;
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

const JOBS = { environment, placement, latency };

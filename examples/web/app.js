// The page: takes a model and a picture, has the worker restore it, shows before and after.

import { toPixels } from "./onnx.js";

const MOST = 2_000_000; // pixels; feature maps of more do not fit into a browser's memory
const NAMES = { wasm: "WebAssembly", webgpu: "WebGPU" };

const at = (id) => document.getElementById(id);
const result = document.querySelector(".result");
const compare = document.querySelector(".compare");
const wanted = new URLSearchParams(location.search).get("backend"); // wasm or webgpu; else what there is
const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
let model; // what the worker says of the open one
let url;

worker.onmessage = ({ data: { id, result: found, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  error ? reject(new Error(error)) : resolve(found);
};
worker.onerror = () => {
  const error = new Error("the browser could not start onnxruntime-web; was npm ci run?");
  for (const { reject } of waiting.values()) reject(error);
};

function ask(message, transfer = []) {
  return new Promise((resolve, reject) => {
    const id = crypto.getRandomValues(new Uint32Array(1))[0];
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, ...message }, transfer);
  });
}

function state(name) {
  document.body.dataset.state = name;
  at("picture").disabled = name !== "ready";
  at("model").disabled = name === "opening" || name === "running";
}

function complain(sentence) {
  at("error").textContent = sentence;
  at("error").hidden = !sentence;
}

const reason = (error) => error.message.split("\n")[0].replace(/^.*ERROR_MESSAGE:?\s*/, "").replace(/\.$/, "").slice(0, 200);

async function open(name, content) {
  complain("");
  state("opening");
  at("model-name").textContent = name;
  at("model-facts").textContent = "opening ...";
  try {
    const bytes = new Uint8Array(await content);
    model = await ask({ task: "open", bytes, backend: wanted }, [bytes.buffer]);
    at("model-facts").textContent = facts(model);
    state("ready");
  } catch (error) {
    model = undefined;
    at("model-facts").textContent = "not open";
    complain(`The model ${name} does not load: ${reason(error)}. Choose an ONNX file that asvp-export wrote.`);
    state("closed");
  }
}

function facts({ rule, fixed, backend, threads }) {
  const nodes = rule.layers.length;
  const size = fixed.every(Boolean) ? `only ${fixed[1]} x ${fixed[0]}` : "any size";
  const by = NAMES[backend] + (threads > 1 ? `, ${threads} threads` : "");
  return [nodes ? `${nodes} protected layer${nodes > 1 ? "s" : ""}` : "no ASVP metadata", size, by].join(" · ");
}

async function restore(file) {
  complain("");
  state("running");
  const picture = await createImageBitmap(file).catch(() => null);
  if (!picture) {
    complain(`${file.name} is not a picture that this browser can read. Choose a PNG, a JPEG or a WebP.`);
    state("ready");
    return;
  }
  const shrink = Math.min(1, Math.sqrt(MOST / (picture.width * picture.height)));
  const [width, height] = [picture.width, picture.height].map((side) => Math.max(1, Math.floor(side * shrink)));
  const pixels = draw(picture, width, height);
  const reduced =
    shrink < 1
      ? ` It was reduced from ${picture.width} x ${picture.height} first: larger ones do not fit into a browser's memory.`
      : "";
  result.hidden = false;
  at("save").hidden = true;
  at("status").textContent = `Restoring ${width} x ${height} ...`;
  try {
    const found = await ask({ task: "run", rgba: pixels.data, height, width }, [pixels.data.buffer]);
    window.restored = found; // the model's own values, for tests
    await show(found);
    const seconds = (found.milliseconds / 1000).toFixed(2);
    const larger = found.width > width ? ` to ${found.width} x ${found.height}` : "";
    at("status").textContent = `Restored ${width} x ${height}${larger} in ${seconds} s.${reduced}`;
  } catch (error) {
    result.hidden = true;
    const memory = /memory|bad_alloc|allocat|out of range/i.test(error.message);
    complain(`${file.name} could not be restored: ${reason(error)}. Choose ${memory ? "a smaller" : "another"} picture.`);
  } finally {
    state("ready");
  }
}

/** Draw a picture as "before", and give its pixels. */
function draw(picture, width, height) {
  const canvas = at("before");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // what is transparent
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, width, height);
  compare.style.setProperty("--wide", width / height);
  return context.getImageData(0, 0, width, height);
}

async function show(found) {
  const canvas = at("after");
  [canvas.width, canvas.height] = [found.width, found.height];
  canvas.getContext("2d").putImageData(new ImageData(toPixels(found, model.rule), found.width, found.height), 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve));
  URL.revokeObjectURL(url);
  at("save").href = url = URL.createObjectURL(blob);
  at("save").hidden = false;
}

async function take(file) {
  if (!file || ["opening", "running", "starting"].includes(document.body.dataset.state)) return;
  if (/\.onnx$/i.test(file.name)) await open(file.name, file.arrayBuffer());
  else if (model) await restore(file);
  else complain("There is no model yet. Choose an ONNX file first.");
}

for (const id of ["model", "picture"]) {
  at(id).addEventListener("change", async ({ target }) => {
    const [file] = target.files;
    target.value = ""; // the same file may be chosen again
    if (id === "model" && file) await open(file.name, file.arrayBuffer());
    else await take(file);
  });
}
at("slider").addEventListener("input", ({ target }) => compare.style.setProperty("--at", `${target.value}%`));
for (const type of ["dragover", "dragleave", "drop"]) {
  addEventListener(type, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", type === "dragover");
    if (type === "drop") take(event.dataTransfer.files[0]);
  });
}
addEventListener("paste", ({ clipboardData }) => take(clipboardData.files[0]));

const served = await fetch("model.onnx").catch(() => null);
if (served?.ok) {
  const name = decodeURIComponent(served.headers.get("X-Model-Name") ?? "model.onnx");
  await open(name, served.arrayBuffer());
} else state("closed");

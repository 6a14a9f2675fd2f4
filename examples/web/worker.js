// onnxruntime-web in a thread of its own, so that the page answers while a picture is restored.

import { cropped, metadata, rules, toInput } from "./onnx.js";

const HOME = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
// The build with WebGPU is twice as large; browsers without it need not load it.
const BUILDS = { wasm: "ort.wasm.bundle.min.mjs", webgpu: "ort.webgpu.bundle.min.mjs" };

let opened; // { ort, session, rule, channels, fixed, backend, threads }

/** What to try, in this order. */
async function backends(wanted) {
  if (wanted === "wasm") return ["wasm"];
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const real = adapter && !adapter.info?.isFallbackAdapter; // a fallback is a GPU played by the processor
  return real || wanted === "webgpu" ? ["webgpu", "wasm"] : ["wasm"];
}

/** A session on the first of the backends that takes the model: WebGPU does not take float64 (bodies from rank 2 on). */
async function created(bytes, [backend, ...others]) {
  try {
    const ort = await import(HOME + BUILDS[backend]);
    ort.env.wasm.wasmPaths = HOME;
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency) : 1;
    const session = await ort.InferenceSession.create(bytes, { executionProviders: [backend], logSeverityLevel: 3 });
    return { ort, session, backend, threads: backend === "wasm" ? ort.env.wasm.numThreads : 0 };
  } catch (error) {
    if (!others.length) throw error;
    return created(bytes, others);
  }
}

async function open(bytes, wanted) {
  await opened?.session.release();
  opened = undefined;
  const rule = rules(metadata(bytes));
  const found = await created(bytes, await backends(wanted));
  const { session, backend, threads } = found;
  const inputs = session.inputMetadata;
  const shape = inputs[0].shape ?? [];
  if (inputs.length !== 1 || shape.length !== 4) throw new Error("it takes something else than one batch of pictures");
  if (inputs[0].type !== "float32") throw new Error(`it takes ${inputs[0].type}, and this page gives float32`);
  const channels = typeof shape[1] === "number" ? shape[1] : 3;
  if (channels !== 1 && channels !== 3) throw new Error(`it takes ${channels} channels, and a picture has 3`);
  const fixed = shape.slice(2).map((side) => (typeof side === "number" ? side : null));
  opened = { ...found, rule, channels, fixed };
  return { rule, fixed, backend, threads };
}

async function run({ rgba, height, width }) {
  const { ort, session, rule, channels, fixed, backend, threads } = opened;
  const input = toInput(rgba, height, width, channels, rule);
  const wrong = fixed.some((side, axis) => side !== null && side !== input.dims[2 + axis]);
  if (wrong) throw new Error(`it takes only pictures of ${fixed[1]} x ${fixed[0]}, and this one is ${width} x ${height}`);
  const start = performance.now();
  const tensor = new ort.Tensor("float32", input.data, input.dims);
  const outputs = await session.run({ [session.inputNames[0]]: tensor });
  const output = outputs[rule.output] ?? outputs[session.outputNames[0]];
  const data = await output.getData();
  const milliseconds = performance.now() - start;
  const dims = output.dims;
  const picture = dims.length === 4 && (dims[1] === 1 || dims[1] === 3);
  if (!picture) throw new Error(`it gives ${dims.join(" x ")}, which is not a picture`);
  return { ...cropped(data, dims, input.dims, height, width), milliseconds, backend, threads };
}

self.onmessage = async ({ data: { id, task, ...given } }) => {
  try {
    const result = await (task === "open" ? open(given.bytes, given.backend) : run(given));
    self.postMessage({ id, result }, result.data ? [result.data.buffer] : []);
  } catch (error) {
    self.postMessage({ id, error: String(error?.message ?? error) });
  }
};

// Times models in one page of a real Chromium, in turns, and gives the last one's output; prints JSON. The job comes as JSON
// in the first argument: { browser, flags, url, backend, models: [path, ...], input: path, dims, rounds, patience }, with
// paths as the server has them.

import { chromium } from "playwright-core";

const job = JSON.parse(process.argv[2]);
const browser = await chromium.launch({ executablePath: job.browser, args: job.flags });
const page = await browser.newPage();
page.setDefaultTimeout(job.patience);
await page.goto(`${job.url}style.css`); // of the same origin, and empty
const seen = await page.evaluate(async ({ backend, models, input, dims, rounds }) => {
  const home = new URL("/node_modules/onnxruntime-web/dist/", location).href;
  const ort = await import(`${home}ort.${backend}.bundle.min.mjs`);
  ort.env.wasm.wasmPaths = home;
  ort.env.wasm.numThreads = 2;
  const bytes = async (path) => (await fetch(path)).arrayBuffer();
  const x = new ort.Tensor("float32", new Float32Array(await bytes(input)), dims);
  const sessions = [];
  const options = { executionProviders: [backend], logSeverityLevel: 3 };
  for (const model of models) sessions.push(await ort.InferenceSession.create(await bytes(model), options));
  const times = sessions.map(() => []);
  let output;
  for (let round = 0; round < rounds + 1; round++) { // the first goes uncounted
    for (const [i, session] of sessions.entries()) {
      const start = performance.now();
      const made = (await session.run({ [session.inputNames[0]]: x }))[session.outputNames[0]];
      const data = await made.getData();
      if (round) times[i].push(performance.now() - start);
      output = { data, dims: made.dims };
    }
  }
  let binary = "";
  for (const byte of new Uint8Array(output.data.buffer)) binary += String.fromCharCode(byte);
  const [, channels, height, width] = output.dims;
  const info = (await navigator.gpu?.requestAdapter())?.info;
  const adapter = info ? `${info.vendor} ${info.architecture}` : null;
  return { times, adapter, version: ort.env.versions.web, output: { channels, height, width, float32: btoa(binary) } };
}, job);
console.log(JSON.stringify({ browser: browser.version(), ...seen }));
await browser.close();

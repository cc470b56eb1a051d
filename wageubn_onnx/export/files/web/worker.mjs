// Steps under Node.js, for `wageubn-onnx verify`: node worker.mjs NODE_MODULES FOLDER LEVEL THREADS JOB.safetensors RESULTS
// JOB holds state/KEY and, of every step, feeds/STEP/INPUT; all outputs of a step go to RESULTS/STEP.safetensors.

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { readTensors, Training, writeTensors } from "./training.mjs";

const [modules, folder, level, threads, job, results] = process.argv.slice(2);
const ort = createRequire(join(modules, "package.json"))("onnxruntime-web");
ort.env.wasm.numThreads = Number(threads);
ort.env.logLevel = "error";
const read = (path) => {
  const bytes = readFileSync(path);
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
};
const training = await Training.open(ort, (name) => read(join(folder, name)), { graphOptimizationLevel: level });
const named = readTensors(ort, read(job));
const part = (prefix) =>
  Object.fromEntries(Object.entries(named).flatMap(([n, t]) => (n.startsWith(prefix) ? [[n.slice(prefix.length), t]] : [])));
training.load(writeTensors(part("state/")).buffer);
for (let i = 0, feeds; Object.keys((feeds = part(`feeds/${i}/`))).length; i++) {
  writeFileSync(join(results, `${i}.safetensors`), writeTensors(await training.advance(feeds)));
}
process.exit(0); // threads would stay

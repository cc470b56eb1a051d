// The page: trains on the exported data and draws the loss.

import { readTensors, shuffled, Training } from "./training.mjs";

const MEAN_OF = 20; // steps
const TEST_BATCH = 64; // images
const at = (id) => document.getElementById(id);
const losses = [];
let training, data, stopped;

async function read(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response.arrayBuffer();
}

async function open() {
  const ort = await import("onnxruntime-web").catch(() => {
    throw new Error("onnxruntime-web is missing: run `npm install` in this folder, then reload");
  });
  ort.env.wasm.numThreads = 1; // more would need a server that isolates the page's origin
  training = await Training.open(ort, read);
  const { manifest, batch, imageShape } = training;
  if (!manifest.data_file) throw new Error("This export has no images: export again with --data DATA");
  data = readTensors(ort, await read(manifest.data_file));
  at("network").textContent =
    `${manifest.source.file}, profile ${manifest.profile}: ${data.x_train.dims[0]} images of ` +
    `${imageShape.slice(1).join("×")}, ${batch} a step. Every tensor is an integer.`;
  const least = 2 ** manifest.exponents.lr;
  Object.assign(at("rate"), { min: least, step: least, value: Math.round(0.01 / least) * least });
  at("load").addEventListener("change", load);
  at("save").addEventListener("click", save);
  at("stop").addEventListener("click", () => (stopped = true));
  at("form").addEventListener("submit", (event) => (event.preventDefault(), guarded(train)));
  await test("before training");
}

// The images, or labels, at these indices.
function rows({ data: values, dims }, indices) {
  const size = values.length / dims[0];
  const chosen = new values.constructor(indices.length * size);
  indices.forEach((index, i) => chosen.set(values.subarray(index * size, (index + 1) * size), i * size));
  return chosen;
}

async function train() {
  const { batch, manifest } = training;
  const [rate, epochs] = [Math.round(at("rate").value / 2 ** manifest.exponents.lr), Number(at("epochs").value)];
  const count = data.x_train.dims[0];
  const steps = Math.floor(count / batch); // an epoch's last partial batch is dropped
  stopped = false;
  for (let epoch = 0; epoch < epochs && !stopped; epoch++) {
    const order = shuffled(count, epoch);
    for (let i = 0; i < steps && !stopped; i++) {
      const chosen = order.subarray(i * batch, (i + 1) * batch);
      const began = performance.now();
      const { loss, correct } = await training.step(rows(data.x_train, chosen), rows(data.y_train, chosen), rate);
      losses.push(loss);
      draw();
      at("status").value =
        `epoch ${epoch + 1}, step ${i + 1} of ${steps}: loss ${loss.toFixed(4)}, ${correct} of ${batch} right, ` +
        `${(performance.now() - began).toFixed(0)} ms`;
      await new Promise((resolve) => setTimeout(resolve)); // the browser draws, and hears of clicks
    }
    await test(`after ${losses.length} steps`);
  }
}

async function test(when) {
  const count = data.x_test.dims[0];
  let right = 0;
  for (let begin = 0; begin < count; begin += TEST_BATCH) {
    const chosen = Int32Array.from({ length: Math.min(TEST_BATCH, count - begin) }, (_, i) => begin + i);
    const labels = rows(data.y_test, chosen);
    right += (await training.predict(rows(data.x_test, chosen))).filter((found, i) => found === labels[i]).length;
  }
  at("accuracy").textContent = `Test images right ${when}: ${right} of ${count} (${((100 * right) / count).toFixed(1)} %)`;
}

function draw() {
  const top = Math.max(...losses);
  const points = (values) =>
    values.map((loss, i) => `${((700 * (i + 0.5)) / losses.length).toFixed(1)},${(255 - (250 * loss) / top).toFixed(1)}`).join(" ");
  const mean = (values) => values.reduce((sum, value) => sum + value) / values.length;
  at("raw").setAttribute("points", points(losses));
  at("mean").setAttribute("points", points(losses.map((_, i) => mean(losses.slice(Math.max(0, i + 1 - MEAN_OF), i + 1)))));
  at("last").textContent = `0 to ${top.toFixed(2)}, ${losses.length} steps`;
}

async function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([training.save()], { type: "application/octet-stream" }));
  link.download = "trained.safetensors";
  link.click();
  URL.revokeObjectURL(link.href);
}

const load = () =>
  guarded(async () => {
    training.load(await at("load").files[0].arrayBuffer());
    losses.length = 0;
    await test("with the state loaded");
  });

// Buttons by what can be clicked; errors in one line on the page.
async function guarded(work) {
  const enable = (busy) => {
    for (const id of ["train", "save", "load"]) at(id).disabled = busy || !data;
    at("stop").disabled = !busy;
    document.body.dataset.state = busy ? "busy" : "ready";
  };
  at("error").textContent = "";
  enable(true);
  try {
    await work();
    at("status").value ||= "Ready";
  } catch (error) {
    at("error").textContent = error.message;
  }
  enable(false);
}

at("status").value = "";
guarded(open);

// Training in integers with onnxruntime-web, in a browser and in Node.js alike. Tensors lie in .safetensors files.

const TYPES = {
  BOOL: ["bool", Uint8Array],
  U8: ["uint8", Uint8Array],
  I8: ["int8", Int8Array],
  U16: ["uint16", Uint16Array],
  I16: ["int16", Int16Array],
  U32: ["uint32", Uint32Array],
  I32: ["int32", Int32Array],
  U64: ["uint64", BigUint64Array],
  I64: ["int64", BigInt64Array],
};
const NAMES = Object.fromEntries(Object.entries(TYPES).map(([name, [type]]) => [type, name]));

// Of an ArrayBuffer: { name: ort.Tensor }.
export function readTensors(ort, buffer) {
  const size = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  delete header.__metadata__;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [begin, end] }] of Object.entries(header)) {
    if (!(dtype in TYPES)) throw new Error(`${name} is ${dtype}; a state and its data are integers`);
    const [type, Values] = TYPES[dtype];
    tensors[name] = new ort.Tensor(type, new Values(buffer.slice(8 + size + begin, 8 + size + end)), shape);
  }
  return tensors;
}

// Of { name: ort.Tensor }: a Uint8Array, the bytes of a .safetensors file, the widest types first so that all are aligned.
export function writeTensors(tensors) {
  const width = (name) => tensors[name].data.BYTES_PER_ELEMENT;
  const names = Object.keys(tensors).sort((a, b) => width(b) - width(a) || (a < b ? -1 : 1));
  const header = {};
  let end = 0;
  for (const name of names) {
    const { type, dims, data } = tensors[name];
    header[name] = { dtype: NAMES[type], shape: dims, data_offsets: [end, (end += data.byteLength)] };
  }
  const json = new TextEncoder().encode(JSON.stringify(header));
  const size = Math.ceil(json.length / 8) * 8;
  const bytes = new Uint8Array(8 + size + end).fill(32, 8, 8 + size); // the header ends in spaces
  new DataView(bytes.buffer).setBigUint64(0, BigInt(size), true);
  bytes.set(json, 8);
  for (const name of names) {
    const { data } = tensors[name];
    bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), 8 + size + header[name].data_offsets[0]);
  }
  return bytes;
}

// The step and the inference model of an exported folder, and the state between steps: { key: ort.Tensor }.
export class Training {
  // read: of a file name in the folder, a promise of its ArrayBuffer. options: those of ort.InferenceSession.create.
  static async open(ort, read, options = {}) {
    const training = new Training();
    training.ort = ort;
    training.manifest = JSON.parse(new TextDecoder().decode(await read("manifest.json")));
    const { step, eval: inference, state_file } = training.manifest;
    const create = async (file) =>
      ort.InferenceSession.create(new Uint8Array(await read(file)), { executionProviders: ["wasm"], ...options });
    training.model = await create(step.model);
    training.inference = await create(inference.model);
    training.imageShape = training.model.inputMetadata.find((input) => input.name === step.images).shape;
    training.batch = training.imageShape[0];
    training.load(await read(state_file));
    return training;
  }

  // Take the state of a .safetensors file, an ArrayBuffer.
  load(buffer) {
    const tensors = readTensors(this.ort, buffer);
    const shapes = new Map(this.model.inputMetadata.map((input) => [input.name, `${input.type} [${input.shape}]`]));
    const state = {};
    for (const { key, in: input } of this.manifest.state) {
      const found = key in tensors ? `${tensors[key].type} [${tensors[key].dims}]` : "missing";
      if (found !== shapes.get(input)) throw new Error(`${key} is ${found}, not ${shapes.get(input)}: another network's state`);
      state[key] = tensors[key];
    }
    this.state = state;
  }

  // The state as the bytes of a .safetensors file: `wageubn-onnx eval --state` and `export --state` read it.
  save() {
    return writeTensors(this.state);
  }

  // One step on `feeds`, images, labels and scalars by input name: every output by name.
  async advance(feeds) {
    const { state } = this.manifest;
    const outputs = await this.model.run({ ...Object.fromEntries(state.map((s) => [s.in, this.state[s.key]])), ...feeds });
    this.state = Object.fromEntries(state.map((s) => [s.key, outputs[s.out]]));
    return outputs;
  }

  // Train on one batch. images: Uint8Array [N, C, H, W]; labels: Int32Array [N]; lr: an integer on the grid of the rate.
  async step(images, labels, lr, gradientRange = 128, seed = 0) {
    const { step, exponents } = this.manifest;
    const scalar = (value) => new this.ort.Tensor("int32", Int32Array.of(value), []);
    const outputs = await this.advance({
      [step.images]: new this.ort.Tensor("uint8", images, this.imageShape),
      [step.labels]: new this.ort.Tensor("int32", labels, [this.batch]),
      [step.lr]: scalar(lr),
      [step.gradient_range]: scalar(gradientRange),
      [step.seed]: scalar(seed),
    });
    return { loss: outputs[step.loss].data[0] * 2 ** exponents.loss, correct: outputs[step.correct].data[0] };
  }

  // The greatest logit's index for each image of a Uint8Array [n, C, H, W].
  async predict(images) {
    const { state, eval: section } = this.manifest;
    const sizes = this.imageShape.slice(1);
    const count = images.length / sizes.reduce((a, b) => a * b);
    const taken = state.filter((s) => this.inference.inputNames.includes(s.in)).map((s) => [s.in, this.state[s.key]]);
    const feeds = { ...Object.fromEntries(taken), [section.images]: new this.ort.Tensor("uint8", images, [count, ...sizes]) };
    const { data } = (await this.inference.run(feeds))[section.logits];
    const classes = data.length / count;
    return Array.from({ length: count }, (_, i) => {
      const row = data.subarray(i * classes, (i + 1) * classes);
      return row.reduce((best, value, j) => (value > row[best] ? j : best), 0);
    });
  }
}

// 0 .. n-1, shuffled; the same for the same epoch.
export function shuffled(n, epoch) {
  const order = Int32Array.from({ length: n }, (_, i) => i);
  let x = Math.imul(epoch + 1, 0x9e3779b9); // Marsaglia's xorshift32, Fisher and Yates's shuffle
  for (let i = n - 1; i > 0; i--) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    const j = (x >>> 0) % (i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

// Holds a port against a vendored folder of the kit (SPEC.md, schema.json, cases/), without Python:
//   node conformance.mjs FOLDER [PORT.mjs]
// The port exports `hello` and `answer(question)`: the objects of SPEC.md, part 2, in float64.
// Exit code 0: every case that it declares itself for is within its bound.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const beside = fileURLToPath(new URL("dora.mjs", import.meta.url));
const [folder, port = beside] = process.argv.slice(2);
const { hello, answer } = await import(pathToFileURL(resolve(port)));
const cases = join(folder, "cases");

// --- the files, each held against its checksum (part 3)

const manifest = JSON.parse(readFileSync(join(cases, "MANIFEST.json"), "utf8"));
const files = Object.fromEntries(Object.entries(manifest.sha256).map(([name, expected]) => {
  const bytes = readFileSync(join(cases, name));
  if (createHash("sha256").update(bytes).digest("hex") !== expected) {
    console.error(`${name}: the file was changed`);
    process.exit(2);
  }
  return [name, bytes];
}));

/** An array of a safetensors file: 8 bytes of length, a header in JSON, float64 numbers. */
function fromSafetensors({ file, key }) {
  const bytes = files[file], start = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, start));
  const { dtype, shape, data_offsets: [from, to] } = header[key];
  if (dtype !== "F64") throw new Error(`${file}, ${key}: expected F64, got ${dtype}`);
  const flat = Array.from({ length: (to - from) / 8 }, (_, k) =>
    bytes.readDoubleLE(start + from + 8 * k));
  const cut = (rows, width) => Array.from({ length: rows.length / width }, (_, k) =>
    rows.slice(k * width, (k + 1) * width));
  return shape.slice(1).reduceRight(cut, flat);
}

const isArrayElsewhere = (value) => value && Object.hasOwn(value, "file");
const read = (arrays) => Object.fromEntries(Object.entries(arrays).map(([name, value]) =>
  [name, isArrayElsewhere(value) ? fromSafetensors(value) : value]));

// --- numbers

const entrywise = (f, first, ...others) => Array.isArray(first)
  ? first.map((part, k) => entrywise(f, part, ...others.map((array) => array[k])))
  : f(first, ...others);
const largest = (array) => [array].flat(Infinity).reduce((most, x) =>
  Number.isFinite(x) ? Math.max(most, Math.abs(x)) : Infinity, 0);
const sameShape = (got, expected) => Array.isArray(expected)
  ? Array.isArray(got) && got.length === expected.length
    && expected.every((part, k) => sameShape(got[k], part))
  : typeof got === "number";

/** Why an output is out of its bound, or nothing; a bound of null: finite is enough. */
function wrong(got, expected, bound) {
  if (!sameShape(got, expected)) return "expected another shape, or numbers";
  if (bound === null) return Number.isFinite(largest(got)) ? "" : "not finite";
  const error = largest(entrywise((a, b) => a - b, got, expected)) / (largest(expected) || 1);
  return error <= bound ? "" : `relative error ${error.toExponential(1)}, bound ${bound}`;
}

// --- the questions (part 2)

const defaults = { layout: "out_in", strength: 1, stride: 1, padding: 0 };
const gives = { y: "forward", W: "merge", dA: "backward", m: "init_magnitude" };

function ask(op, c, norm_grad, inputs) {
  const { optimizer, ...settings } = c.settings;
  const about = { op, case: c.name, kind: c.kind, dtype: "float64", norm_grad, scale: c.scale };
  const output = answer({ ...defaults, ...about, ...c.requires, ...settings, ...inputs });
  if (output.unsupported || output.error) throw new Error(`${op}: ${JSON.stringify(output)}`);
  return output;
}

/** What the port gives for one case: two steps of an optimizer, or each operation once. */
function outputsOf(c, norm_grad) {
  const inputs = read(c.inputs), put = (op) => ask(op, c, norm_grad, inputs);
  if (c.settings.optimizer) return afterSteps(c, inputs, put);
  const initial = inputs.m ? {} : put("init_magnitude");
  inputs.m ??= initial.m;
  const asked = Object.keys(gives).filter((name) => name in c.expected);
  return Object.assign(initial, ...asked.map((name) => put(gives[name])));
}

function afterSteps(c, inputs, put) {
  const after = { A: [], B: [], m: [] }, state = {};
  for (const step of [1, 2]) {
    inputs.dy = entrywise((y, target) => y - target, put("forward").y, inputs.target);
    const gradients = put("backward");
    for (const name of Object.keys(after)) {
      state[name] ??= { u: times(0, inputs[name]), v: times(0, inputs[name]) };
      const update = updates[c.settings.optimizer.name];
      const [p, dp] = [inputs[name], gradients[`d${name}`]];
      inputs[name] = update(p, dp, state[name], step, c.settings.optimizer);
      after[name].push(inputs[name]);
    }
  }
  return { ...after, ...put("merge") };
}

const times = (factor, array) => entrywise((x) => factor * x, array);
const updates = {
  sgd: (p, dp, _state, _step, { rate }) => entrywise((value, d) => value - rate * d, p, dp),
  adamw(p, dp, state, step, { rate, betas: [beta1, beta2], eps, weight_decay }) {
    state.u = entrywise((u, d) => beta1 * u + (1 - beta1) * d, state.u, dp);
    state.v = entrywise((v, d) => beta2 * v + (1 - beta2) * d * d, state.v, dp);
    const [bias1, bias2] = [1 - beta1 ** step, 1 - beta2 ** step];
    return entrywise((value, u, v) => value * (1 - rate * weight_decay)
      - rate * (u / bias1) / (Math.sqrt(v / bias2) + eps), p, state.u, state.v);
  },
};

// --- every case that the port declares itself for

const counts = { pass: 0, fail: 0, skip: 0 };
const names = Object.keys(files).filter((name) => name.endsWith(".json"));
for (const c of names.map((name) => JSON.parse(files[name]))) {
  const offered = Object.entries({ ...c.requires, dtype: "float64" })
    .every(([name, choice]) => hello.alternatives[name]?.includes(choice));
  if (!offered || !c.dtypes.includes("float64")) { counts.skip++; continue; }
  const hasGradients = "dA" in c.expected || "A" in c.expected;
  for (const norm_grad of hasGradients ? hello.alternatives.norm_grad : [null]) {
    let notes;
    try {
      const got = outputsOf(c, norm_grad);
      notes = Object.entries(read(c.expected)).map(([name, expected]) => {
        const values = read({ of: expected[norm_grad] ?? expected }).of;
        const note = wrong(got[name], values, c.tolerances.float64);
        return note && `${name}: ${note}`;
      }).filter(Boolean);
    } catch (problem) { notes = [String(problem)]; }
    counts[notes.length ? "fail" : "pass"]++;
    if (notes.length) console.log(`${c.name} ${norm_grad ?? ""}: ${notes.join("; ")}`);
  }
}
console.log(`${hello.name} against kit ${manifest.kit}: ${JSON.stringify(counts)}`);
process.exit(counts.fail || !counts.pass ? 1 : 0);

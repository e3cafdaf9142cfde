// The kit's questions and answers, one JSON object a line; the arithmetic is the explorer's.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const DoRA = createRequire(import.meta.url)("../../lessons/explorer/dora.js");

const HELLO = {
  name: "dora.mjs", version: "0.1",
  alternatives: {
    norm_axis: ["per_output", "per_input"], norm_grad: ["exact", "detached"],
    dropout: ["both", "low_rank"], zero_vector: "unit",
    layout: ["out_in", "in_out"], scaling: ["alpha_over_r", "alpha_over_sqrt_r"],
    strength: "interpolated", embedding: ["per_dimension", "per_token"], dtype: "float64",
  },
};

const { forward, backward, merge, init_magnitude } = DoRA;
const operations = { hello: () => HELLO, forward, backward, merge, init_magnitude };

function answer(r) {
  if (r.kind === "convolution") return { unsupported: "convolution" };
  if (!Object.hasOwn(operations, r.op)) return { unsupported: "op" };
  return operations[r.op](r);
}

createInterface({ input: process.stdin }).on("line", (line) => {
  const r = JSON.parse(line);
  let output;
  try { output = answer(r); } catch (problem) { output = { error: String(problem) }; }
  process.stdout.write(JSON.stringify({ id: r.id, ...output }) + "\n");
});

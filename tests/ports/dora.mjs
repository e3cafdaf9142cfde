// A port whose arithmetic is the explorer's. `node dora.mjs` answers the kit's questions, one JSON
// object a line (SPEC.md, part 2); conformance.mjs asks it without Python.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const DoRA = createRequire(import.meta.url)("../../lessons/explorer/dora.js");

export const hello = {
  name: "dora.mjs", version: "0.1",
  alternatives: {
    norm_axis: ["per_output", "per_input"], norm_grad: ["exact", "detached"],
    dropout: ["both", "low_rank"], zero_vector: ["unit"],
    layout: ["out_in", "in_out"], scaling: ["alpha_over_r", "alpha_over_sqrt_r"],
    strength: ["interpolated"], embedding: ["per_dimension", "per_token"], dtype: ["float64"],
  },
};

const { forward, backward, merge, init_magnitude } = DoRA;
const operations = { hello: () => hello, forward, backward, merge, init_magnitude };

export function answer(r) {
  if (r.kind === "convolution") return { unsupported: "convolution" };
  if (!Object.hasOwn(operations, r.op)) return { unsupported: "op" };
  return operations[r.op](r);
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  createInterface({ input: process.stdin }).on("line", (line) => {
    const r = JSON.parse(line);
    let output;
    try { output = answer(r); } catch (problem) { output = { error: String(problem) }; }
    process.stdout.write(JSON.stringify({ id: r.id, ...output }) + "\n");
  });
}

// A cloud of random vectors, moved by decay and by updates of one length: ΔM against ΔD.
// `Cloud.points` has what is drawn, `Cloud.vectors` what it was made of.
const Cloud = (() => {
  "use strict";
  const { $, svg, shape, format, show, named, METHODS } = Page;
  const DIMENSION = 256;
  const state = { decay: 0, length: 0.5, spread: 2, step: 0.1, count: 128, seed: 1 };
  const DIGITS = { decay: 3, length: 2, spread: 1, step: 2, count: 0, seed: 0 };
  const figure = $("cloud"), panel = figure.closest(".pair");
  const vectors = { W0: [], W: {} }, points = {};
  let directions, chosen = "full"; // unit vectors, of the w0 and of the updates; the method shown

  /** Numbers between 0 and 1: x ← 48271 x modulo 2³¹ − 1 (Lehmer), begun at 12345 + seed. */
  function generator(seed) {
    let x = 12345 + seed;
    return () => (x = (48271 * x) % 2147483647) / 2147483647;
  }

  /** `count` unit vectors in random directions: normal numbers (Box and Muller), to length 1. */
  function unitVectors(count, random) {
    const drawn = Array.from({ length: count }, () => {
      const vector = [];
      while (vector.length < DIMENSION) {
        const radius = Math.sqrt(-2 * Math.log(random())), angle = 2 * Math.PI * random();
        vector.push(radius * Math.cos(angle), radius * Math.sin(angle));
      }
      return vector;
    });
    return DoRA.weigh({ m: drawn.map(() => 1) }, drawn).W;
  }

  function drawDirections() {
    const random = generator(state.seed);
    directions = [unitVectors(state.count, random), unitVectors(state.count, random)];
  }

  /** Moves the vectors as each method would, and takes their changes. */
  function compute() {
    const { decay, length, spread, step, count } = state;
    const even = directions[0].map((_, k) => spread ** (2 * k / (count - 1) - 1)); // even in ln m
    const W0 = DoRA.weigh({ m: even }, directions[0]).W;
    const moved = (kept) =>
      W0.map((w0, k) => w0.map((entry, j) => kept * entry + length * directions[1][k][j]));
    const lora = moved(1); // its decay never reaches W0
    const dora = DoRA.weigh({ m: even.map((m) => (1 - decay) * m + step) }, lora).W;
    Object.assign(vectors, { W0, norms: even, W: { full: moved(1 - decay), lora, dora } });
    for (const method in vectors.W) {
      const { growth, turn } = DoRA.changes(W0, vectors.W[method]);
      points[method] = { dD: turn, dM: growth.map(Math.abs) };
    }
  }

  const mean = (numbers) => DoRA.dot(numbers, numbers.map(() => 1 / numbers.length));

  /** Pearson's r, and the line of least squares; no r where nothing varies (norms are about 1). */
  function fit({ dD, dM }) {
    const [x0, y0] = [mean(dD), mean(dM)];
    const [x, y] = [dD.map((x) => x - x0), dM.map((y) => y - y0)];
    const [xx, xy, yy] = [DoRA.dot(x, x), DoRA.dot(x, y), DoRA.dot(y, y)];
    const flat = Math.min(xx, yy) < 1e-24 * x.length, slope = xy / xx;
    const r = Math.max(-1, Math.min(1, xy / Math.sqrt(xx * yy)));
    return { r: flat ? NaN : r, slope, intercept: y0 - slope * x0 };
  }

  // --- drawing

  /** The numbers of an axis, three to six round steps up to `most`; `at` says where one stands. */
  function ticks(most, at) {
    const power = 10 ** Math.floor(Math.log10(most / 3));
    const step = power * [5, 2, 1].find((factor) => factor * power <= most / 3);
    return Array.from({ length: Math.floor(most / step) + 1 }, (_, k) =>
      svg("text", { ...at(k * step), "text-anchor": "end" }, Number((k * step).toPrecision(3))));
  }

  function draw({ slope, intercept }) {
    const { dD, dM } = points[chosen];
    const [mostX, mostY] = [Math.max(...dD) * 1.05, Math.max(...dM, 1e-9) * 1.1];
    const placeX = (x) => 56 + 334 * x / mostX, placeY = (y) => 290 - 266 * y / mostY;
    const ends = [Math.min(...dD), Math.max(...dD)].map((x) => [x, intercept + slope * x]);
    const [from, to] = ends.map(([x, y]) => [placeX(x), placeY(y)]);
    const marks = dD.map((x, k) =>
      shape(chosen, placeX(x), placeY(dM[k]), 3.2 * Math.sqrt(vectors.norms[k])));
    figure.replaceChildren(
      svg("path", { class: "axis", d: "M56 16V290H392" }),
      ...ticks(mostX, (x) => ({ x: placeX(x) + 8, y: 308 })),
      ...ticks(mostY, (y) => ({ x: 50, y: placeY(y) + 5 })),
      svg("text", { x: 390, y: 330, "text-anchor": "end" }, "ΔD: how far it turned"),
      svg("text", { x: 64, y: 16 }, "ΔM: how much its length changed"),
      ...marks, svg("path", { class: "fit", d: `M${from}L${to}` }));
  }

  function update() {
    compute();
    const lines = {};
    for (const method in METHODS) {
      const { dD } = points[method], row = $("methods").querySelector(`.${method}`);
      const middle = [...dD].sort((a, b) => a - b)[dD.length / 2];
      lines[method] = fit(points[method]);
      show(named(row, "r"), lines[method].r, 2, "+");
      show(named(row, "slope"), lines[method].slope, 2, "+");
      const acting = method === "lora" ? 0 : state.decay;
      show(named(row, "ratio"), acting / (method === "dora" ? state.step : middle));
    }
    draw(lines[chosen]);
    for (const name in DIGITS) {
      const slider = $(name);
      if (slider) slider.value = state[name];
      show(named(panel, name), state[name], DIGITS[name]);
    }
    const { r } = lines[chosen], name = METHODS[chosen];
    $("cloud-says").textContent = Number.isFinite(r) ? `${name}: r = ${format(r, 2, "+")}.`
      : `${name}: no r, for ΔM or ΔD does not vary.`;
  }

  Page.rows($("methods"), ["r", "slope", "ratio"], (method) => `<input type="radio" name="method"
    value="${method}" ${method === chosen ? "checked" : ""}>`);
  $("methods").addEventListener("change", (event) => { chosen = event.target.value; update(); });
  for (const name of ["decay", "length", "spread", "step", "count"])
    $(name).addEventListener("input", () => {
      state[name] = Number($(name).value);
      if (name === "count") drawDirections();
      update();
    });
  $("redraw").addEventListener("click", () => { state.seed += 1; drawDirections(); update(); });
  drawDirections();
  update();
  return { state, vectors, points };
})();

// One weight vector in the plane: three handles, a step of each method, and what is read off it.
// `Page` holds what plane and cloud share; `Plane.state` is what the handles and sliders set.
const Page = (() => {
  "use strict";
  const METHODS = { full: "full", lora: "LoRA", dora: "DoRA" };
  const $ = (id) => document.getElementById(id);
  const named = (root, name) => root.querySelector(`[data-of="${name}"]`);

  /** A circle, a square, a triangle of size s about a point: told apart without colour. */
  const OUTLINES = {
    full: (x, y, s) => `M${x - s} ${y}a${s} ${s} 0 1 0 ${2 * s} 0a${s} ${s} 0 1 0 ${-2 * s} 0z`,
    lora: (x, y, s) => `M${x - s * 0.9} ${y - s * 0.9}h${s * 1.8}v${s * 1.8}h${-s * 1.8}z`,
    dora: (x, y, s) => `M${x} ${y - s * 1.2}l${s * 1.15} ${s * 2.1}h${-s * 2.3}z`,
  };

  function svg(name, attributes, text = "") {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    element.textContent = text;
    return element;
  }

  const shape = (method, x, y, size) =>
    svg("path", { class: `shape ${method}`, d: OUTLINES[method](x, y, size) });

  /** A number as text with a true minus sign; "none" where it is not finite. */
  function format(value, digits, sign = "") {
    if (!Number.isFinite(value)) return "none";
    const text = Math.abs(value).toFixed(digits);
    return (value < 0 && Number(text) !== 0 ? "−" : sign) + text;
  }

  /** Shows a number, and keeps it whole in data-value. */
  function show(element, value, digits = 2, sign = "", unit = "") {
    element.dataset.value = String(value);
    element.textContent = format(value, digits, sign) + unit;
  }

  /** A table row for each method: `before` it, its mark and name, a cell for each of `columns`. */
  function rows(body, columns, before) {
    for (const method in METHODS) {
      const row = body.insertRow();
      row.className = method;
      row.innerHTML = `<th scope="row"><label>${before(method)}<svg class="mark" aria-hidden="true"
        viewBox="0 0 14 14">${shape(method, 7, 7, 6).outerHTML}</svg> ${METHODS[method]}</label>`
        + columns.map((column) => `<td data-of="${column}"></td>`).join("");
    }
  }

  return { METHODS, $, svg, shape, format, show, named, rows };
})();

const Plane = (() => {
  "use strict";
  const { $, svg, shape, format, show, named } = Page;
  const UNIT = 50, LEFT = -2.5, TOP = 5, RIGHT = 5.5, BOTTOM = -1.8;
  const START = { w0: [1.8, 3], d: [1.4, -0.6], G: [0.5, -1.9], m: 3.2, rate: 0.15 };
  const LABELS = { w0: "w₀, the pretrained vector", d: "d, the update", G: "G, the gradient" };
  const state = { ...START, detached: false };
  const figure = $("plane"), panel = figure.closest(".pair");
  let A = [1, 0]; // the direction of d, kept where d shrinks to nothing

  const add = ([a, b], [c, d], factor = 1) => [a + factor * c, b + factor * d];
  const pixels = ([x, y]) => [(x - LEFT) * UNIT, (TOP - y) * UNIT];
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const within = ([x, y]) => [clamp(x, LEFT + 0.3, RIGHT - 0.3), clamp(y, BOTTOM + 0.3, TOP - 0.3)];

  /** What SPEC.md's layer says of one row w0, with s = 1, A of length 1, and dL/dW = G. */
  function compute() {
    const { w0, d, G, m, rate, detached } = state;
    const B = Math.hypot(...d);
    if (B > 0) A = d.map((entry) => entry / B);
    const r = { W0: [w0], A: [A], B: [[B]], m: [m], scale: 1, x: [G], dy: [[1]] };
    const { V, c, merged } = DoRA.layerOf(r);
    const grads = DoRA.backward({ ...r, norm_grad: detached ? "detached" : "exact" });
    // LoRA is DoRA without a norm: detached, with m/c = 1
    const lora = DoRA.backward({ ...r, m: c, norm_grad: "detached" });
    const descend = (p, dp) => DoRA.entrywise((entry, slope) => entry - rate * slope, p, dp);
    const moved = ({ dA, dB }) => ({ ...r, A: descend(r.A, dA), B: descend(r.B, dB) });
    const [newM] = descend([r.m], [grads.dm]);
    const steps = {
      full: [merged, descend(merged, r.x)],
      lora: [V, DoRA.layerOf(moved(lora)).V],
      dora: [merged, DoRA.layerOf({ ...moved(grads), m: newM }).merged],
    };
    return { V: V[0], W: merged[0], grads, steps };
  }

  function arrow(from, to, name) {
    const [[x, y], [tipX, tipY]] = [pixels(from), pixels(to)];
    const [length, angle] = [Math.hypot(tipX - x, tipY - y), Math.atan2(tipY - y, tipX - x)];
    const barb = (turn) => [tipX - 9 * Math.cos(angle + turn), tipY - 9 * Math.sin(angle + turn)];
    const head = length < 4 ? "" : `M${barb(0.45)}L${tipX} ${tipY}L${barb(-0.45)}`;
    return svg("path", { class: `vector ${name}`, d: `M${x} ${y}L${tipX} ${tipY}${head}` });
  }

  /** Text by the way from one point to another: `share` of it, `side` pixels to its left. */
  function label(text, from, to, share, side) {
    const [[x, y], [tipX, tipY]] = [pixels(from), pixels(to)];
    const [alongX, alongY] = [tipX - x, tipY - y], length = Math.hypot(alongX, alongY) || 1;
    const [right, down] = [side * alongY / length, -side * alongX / length];
    const anchor = Math.abs(right) < 5 ? "middle" : right > 0 ? "start" : "end";
    const place = { x: x + share * alongX + right, y: y + share * alongY + down + 5 };
    return svg("text", { ...place, "text-anchor": anchor }, text);
  }

  function draw({ V, W, grads, steps }) {
    const { w0, G, m } = state;
    const origin = [0, 0], tips = tipsOf(W), tip = tips.G, along = add(W, grads.radial[0]);
    const [x, y] = pixels(origin);
    const outside = (G[0] * W[1] - G[1] * W[0]) * grads.dm[0] * m > 0 ? 9 : -9;
    const stepped = Object.entries(steps).flatMap(([method, [[from], [to]]]) => [
      svg("path", { class: `path ${method}`, d: `M${pixels(from)}L${pixels(to)}` }),
      shape(method, ...pixels(to), 6)]);
    $("drawing").replaceChildren(
      svg("circle", { class: "radius", cx: x, cy: y, r: Math.abs(m) * UNIT }),
      arrow(origin, w0, ""), arrow(w0, V, "part"), arrow(origin, V, ""), arrow(origin, W, "strong"),
      arrow(W, along, "part"), arrow(along, tip, "part"), arrow(W, tip, "strong"), ...stepped,
      label("w₀", origin, w0, 1, 14), label("d", w0, V, 0.5, 10), label("V", origin, V, 1, -14),
      label("W", origin, W, 0.5, 10), label("G", W, tip, 1, 14),
      label("radial", W, along, 0.5, outside), label("tangential", along, tip, 0.5, outside));
    for (const name in tips) {
      const handle = $(`handle-${name}`), [a, b] = state[name];
      handle.setAttribute("transform", `translate(${pixels(tips[name])})`);
      handle.setAttribute("aria-valuenow", Math.hypot(a, b).toFixed(2));
      handle.setAttribute("aria-valuetext", `x ${a.toFixed(2)}, y ${b.toFixed(2)}`);
      Object.assign(handle.dataset, { x: a, y: b });
    }
  }

  function update() {
    const now = compute();
    draw(now);
    const { radial: [radial], tangential: [tangential], dm: [dm] } = now.grads;
    const vectors = { w0: state.w0, V: now.V, W: now.W, radial, tangential };
    for (const name in vectors) show(named(panel, name), Math.hypot(...vectors[name]));
    show(named(panel, "dm"), dm);
    for (const name of ["m", "rate"]) {
      $(name).value = state[name];
      show(named(panel, name), state[name]);
    }
    $("detached").checked = state.detached;
    for (const part of panel.querySelectorAll(".dora"))
      part.classList.toggle("is-detached", state.detached);
    for (const method in now.steps) {
      const [before, after] = now.steps[method], { growth, turn } = DoRA.changes(before, after);
      const row = $("steps").querySelector(`.${method}`);
      show(named(row, "norm"), Math.hypot(...after[0]));
      named(row, "norm").prepend(`${format(Math.hypot(...before[0]), 2)} → `);
      show(named(row, "growth"), growth[0], 3, "+");
      show(named(row, "angle"), Math.acos(1 - turn[0]) * 180 / Math.PI, 1, "", "°");
      show(named(row, "turn"), turn[0], 4);
    }
  }

  const tipsOf = (W) => ({ w0: state.w0, d: add(state.w0, state.d), G: add(W, state.G) });

  /** Moves the tip of a vector to `goal`, or as near as the picture allows. */
  function move(name, goal) {
    const tip = tipsOf(compute().W)[name];
    state[name] = add(state[name], add(within(goal), tip, -1));
    if (name === "w0") state.d = add(within(add(state.w0, state.d)), state.w0, -1);
    update();
  }

  function addHandle(name) {
    const handle = svg("g", { id: `handle-${name}`, class: "handle", tabindex: 0, role: "slider",
      "aria-label": LABELS[name], "aria-valuemin": 0, "aria-valuemax": 12,
      "aria-roledescription": "handle for two dimensions" });
    handle.append(svg("circle", { class: "reach", r: 16 }), svg("circle", { class: "ring", r: 7 }));
    $("handles").append(handle);
    handle.addEventListener("pointerdown", (event) => handle.setPointerCapture(event.pointerId));
    handle.addEventListener("pointermove", (event) => {
      if (!handle.hasPointerCapture(event.pointerId)) return;
      const { left, top, width } = figure.getBoundingClientRect(), unit = width / (RIGHT - LEFT);
      move(name, [LEFT + (event.clientX - left) / unit, TOP - (event.clientY - top) / unit]);
    });
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    handle.addEventListener("keydown", (event) => {
      if (!ways[event.key]) return;
      event.preventDefault(); // the page would scroll
      move(name, add(tipsOf(compute().W)[name], ways[event.key], event.shiftKey ? 0.01 : 0.1));
    });
  }

  /** Lays G along W, or across it to the left, at its present length. */
  function lay(across) {
    const [x, y] = compute().W, size = Math.hypot(...state.G) / (Math.hypot(x, y) || 1);
    state.G = across ? [-size * y, size * x] : [size * x, size * y];
  }

  for (let x = Math.ceil(LEFT); x < RIGHT; x++)
    $("grid").append(svg("path", { class: x ? "grid" : "axis", d: `M${pixels([x, TOP])}V340` }));
  for (let y = Math.ceil(BOTTOM); y < TOP; y++)
    $("grid").append(svg("path", { class: y ? "grid" : "axis", d: `M${pixels([LEFT, y])}H400` }));
  ["w0", "d", "G"].forEach(addHandle);
  Page.rows($("steps"), ["norm", "growth", "angle", "turn"], () => "");
  const on = (id, type, action) => $(id).addEventListener(type, () => { action(); update(); });
  const slide = (name) => on(name, "input", () => { state[name] = Number($(name).value); });
  ["m", "rate"].forEach(slide);
  on("detached", "change", () => { state.detached = $("detached").checked; });
  on("along", "click", () => lay(false));
  on("across", "click", () => lay(true));
  on("as-started", "click", () => { state.m = Math.hypot(...state.w0); });
  on("as-lora", "click", () => { state.m = Math.hypot(...compute().V); });
  on("reset", "click", () => Object.assign(state, START, { detached: false }));
  update();
  return { state };
})();

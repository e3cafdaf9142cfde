// DoRA by SPEC.md, in float64: the page's global `DoRA`, `module.exports` in Node.
// Everything is computed with weights as (d_out, d_in); r has the fields of the kit's questions.
const DoRA = (() => {
  "use strict";

  // --- matrices and rows

  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
  const dot = (u, v) => sum(u.map((entry, k) => entry * v[k]));
  const transpose = (M) => M[0].map((_, j) => M.map((row) => row[j]));
  const times = (M, factor) => M.map((row) => row.map((entry) => factor * entry));

  /** f of the entries of matrices of one shape, entry by entry. */
  const entrywise = (f, first, ...others) =>
    first.map((row, i) => row.map((entry, j) => f(entry, ...others.map((M) => M[i][j]))));

  function matmul(M, N) {
    const columns = transpose(N);
    return M.map((row) => columns.map((column) => dot(row, column)));
  }

  /** f of the rows (last dimension) of arrays with the same leading dimensions (F1, F2). */
  function mapRows(f, first, ...others) {
    if (typeof first[0] === "number") return f(first, ...others);
    return first.map((part, i) => mapRows(f, part, ...others.map((array) => array[i])));
  }

  function listRows(array) {
    const rows = [];
    mapRows((row) => rows.push(row), array);
    return rows;
  }

  /** dyᵀ x summed over all rows (G6), d_out by d_in also where there are no rows (F2). */
  function outerSum(dyRows, xRows, shapeOf) {
    const entry = (i, j) => sum(dyRows.map((dy, n) => dy[i] * xRows[n][j]));
    return shapeOf.map((row, i) => row.map((_, j) => entry(i, j)));
  }

  // --- the layer

  /** W0 between its stored form and (d_out, d_in), either way (L1; E1 is the same, transposed). */
  const isTransposed = (r) => r.kind === "embedding" || r.layout === "in_out";
  const turnStored = (r, W) => (isTransposed(r) ? transpose(W) : W);

  /** A matrix as the list of its weight vectors, and back: rows, or columns (D2, E1). */
  const isPerInput = (r) =>
    r.kind === "embedding" ? r.embedding === "per_token" : r.norm_axis === "per_input";
  const turnVectors = (r, M) => (isPerInput(r) ? transpose(M) : M);

  const norms = (r, M) => turnVectors(r, M).map((vector) => Math.hypot(...vector)); // D3, I1

  /** Each vector of M multiplied by its own factor. */
  const scaleVectors = (r, M, factors) =>
    turnVectors(r, turnVectors(r, M).map((v, k) => v.map((entry) => factors[k] * entry)));

  function scaleOf(r) { // S1, S2
    const rank = r.A.length;
    return r.scale ?? r.alpha / (r.scaling === "alpha_over_sqrt_r" ? Math.sqrt(rank) : rank);
  }

  /** The directions of V at the magnitudes r.m: their norms c, m/c and W = m V / c (D3, D4). */
  function weigh(r, V) {
    const c = norms(r, V);
    const ratio = c.map((norm, k) => (norm === 0 ? 1 : r.m[k] / norm)); // Z2, unit
    return { c, ratio, W: scaleVectors(r, V, ratio) };
  }

  function layerOf(r) {
    const s = scaleOf(r);
    const W0 = turnStored(r, r.W0);
    const BA = times(matmul(r.B, r.A), s);
    const V = entrywise((w, d) => w + d, W0, BA); // D1
    const { c, ratio, W } = weigh(r, V);
    const t = r.strength ?? 1;
    const interpolated = (M) => entrywise((w0, w) => (1 - t) * w0 + t * w, W0, M); // S3
    const layer = { s, t, W0, V, c, ratio, merged: interpolated(W) };
    // y = x plainᵀ + (x ∘ mask) maskedᵀ + bias (F1; P1)
    if (!r.mask) return { ...layer, plain: layer.merged, masked: times(W0, 0) };
    if (r.dropout === "low_rank") {
      const plain = interpolated(scaleVectors(r, W0, ratio));
      return { ...layer, plain, masked: times(scaleVectors(r, BA, ratio), t) };
    }
    return { ...layer, plain: W0, masked: entrywise((w, w0) => t * (w - w0), W, W0) };
  }

  /** x, or the one-hot rows of the tokens, which make y = W[tokens] an x Wᵀ (E2). */
  function inputOf(r) {
    if (r.kind !== "embedding") return r.x;
    const oneHot = (token) => r.W0.map((_, k) => (k === token ? 1 : 0));
    const expand = (tokens) => (Array.isArray(tokens) ? tokens.map(expand) : oneHot(tokens));
    return expand(r.tokens);
  }

  const maskOf = (r, x) => r.mask ?? mapRows((row) => row.map(() => 1), x);

  // --- the four operations

  function forward(r) {
    const { plain, masked } = layerOf(r);
    const outputRow = (x, mask) => plain.map((w, i) =>
      dot(w, x) + dot(masked[i], x.map((entry, k) => entry * mask[k])) + (r.bias?.[i] ?? 0)); // B1
    const x = inputOf(r);
    return { y: mapRows(outputRow, x, maskOf(r, x)) };
  }

  /** The gradients, and of the step between them: dV, and the part of G1 along V that it loses. */
  function backward(r) {
    const { s, t, W0, V, c, ratio, plain, masked } = layerOf(r);
    const x = inputOf(r);
    const mask = maskOf(r, x);
    const dyRows = listRows(r.dy);
    const maskedX = mapRows((row, m) => row.map((entry, k) => entry * m[k]), x, mask);
    const G1 = times(outerSum(dyRows, listRows(maskedX), W0), t); // t: S3
    const G0 = r.dropout === "low_rank" ? times(outerSum(dyRows, listRows(x), W0), t) : G1;
    // G1, P2: G0 ∘ W0 + G1 ∘ s B A, written so that nothing cancels where G0 = G1 (D5)
    const products = entrywise((g0, g1, v, w0) => g1 * v + (g0 - g1) * w0, G0, G1, V, W0);
    const dm = turnVectors(r, products).map((p, k) => (c[k] === 0 ? 0 : sum(p) / c[k])); // Z2
    const radial = scaleVectors(r, V, c.map((norm, k) => (norm === 0 ? 0 : dm[k] / norm)));
    const tangential = entrywise((g, along) => g - along, G1, radial);
    const dV = scaleVectors(r, r.norm_grad === "detached" ? G1 : tangential, ratio); // G2
    const dA = times(matmul(transpose(r.B), dV), s); // G3
    const dB = times(matmul(dV, transpose(r.A)), s);
    const [plainT, maskedT] = [transpose(plain), transpose(masked)];
    const dxRow = (dy, m) => plainT.map((w, k) => dot(w, dy) + m[k] * dot(maskedT[k], dy));
    const dx = r.kind === "embedding" ? undefined : mapRows(dxRow, r.dy, mask); // G4, P2; E2
    const dbias = r.bias?.map((_, i) => sum(dyRows.map((dy) => dy[i]))); // G5
    return { dx, dA, dB, dm, dbias, dV, radial, tangential };
  }

  const merge = (r) => ({ W: turnStored(r, layerOf(r).merged) }); // M1
  const init_magnitude = (r) => ({ m: norms(r, turnStored(r, r.W0)) }); // I1

  // --- how vectors move

  /** Of the rows from W0 to W: growth, ‖w‖ - ‖w0‖ (ΔM is its size), and turn (ΔD), 1 - cos, as half
   *  of ‖u - u0‖² of the unit vectors; a right angle where one has no length. */
  function changes(W0, W) {
    const moves = W0.map((w0, k) => {
      const [before, after] = [Math.hypot(...w0), Math.hypot(...W[k])];
      if (before === 0 || after === 0) return [after - before, 1];
      const apart = w0.map((entry, j) => W[k][j] / after - entry / before);
      return [after - before, dot(apart, apart) / 2];
    });
    return { growth: moves.map(([growth]) => growth), turn: moves.map(([, turn]) => turn) };
  }

  return { forward, backward, merge, init_magnitude, layerOf, weigh, changes, dot, entrywise };
})();

if (typeof module !== "undefined") module.exports = DoRA;

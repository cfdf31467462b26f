// A client in JavaScript: randlora-ref check --exec 'node examples/client.mjs'
// One case a line comes in, one answer a line goes out; nested lists of numbers will do as arrays.
import { createInterface } from "node:readline";

function decode({ shape, dtype, data }) {
  if (dtype === "int") return { shape, data };
  const words = data === "" ? [] : data.split(" ");
  const read = dtype === "float32" ? (b) => b.readFloatBE() : (b) => b.readDoubleBE();
  return { shape, data: words.map((word) => read(Buffer.from(word, "hex"))) };
}

function nested(shape, data) {
  if (shape.length === 0) return data[0];
  const [first, ...rest] = shape;
  const size = rest.reduce((a, b) => a * b, 1);
  return Array.from({ length: first }, (_, i) => nested(rest, data.slice(i * size, (i + 1) * size)));
}

function layer(given) {
  const [A, B, L, G, W, x, dy] = ["A", "B", "lambda_", "gamma", "weight", "x", "dy"].map((name) => decode(given[name]));
  const [out, inn] = W.shape, [n, r] = L.shape, d = G.shape[1], D = (out * inn) / d, s = given.scaling;
  const rows = x.data.length / inn, how = given.orientation ?? "paper";
  const transposed = how !== "never" && (out < inn || (out === inn && how === "square_transposed"));
  const place = (o, i) => // the place of ΔW's entry (o, i) in M (D, d), row by row; for its gradient the way back
    how === "reshape" ? i * out + o : transposed ? i * d + o : o * d + i;
  const b = (j, k, o) => { // column k of B_j; crossed: the column at flat place k·n + j
    const f = k * n + j, [term, column] = given.pairing === "literal" ? [j, k] : [Math.floor(f / r), f % r];
    return B.data[(term * B.shape[1] + o) * r + column];
  };
  const a = (k, i) => A.data[k * A.shape[1] + i];
  const range = (size, f) => Array.from({ length: size }, (_, i) => f(i));
  const sum = (size, f) => { let total = 0; for (let i = 0; i < size; i++) total += f(i); return total; };
  const M = range(D * d, (e) => {
    const o = Math.floor(e / d), i = e % d;
    return s * sum(n, (j) => sum(r, (k) => b(j, k, o) * L.data[j * r + k] * a(k, i) * G.data[j * d + i]));
  });
  const delta = (o, i) => M[place(o, i)];
  const mask = given.dropout_mask ? decode(given.dropout_mask).data : x.data.map(() => 1);
  const seen = (t, o, i) => W.data[o * inn + i] + mask[t * inn + i] * delta(o, i); // dropout is the adapter's alone
  const kept = x.data.map((value, e) => value * mask[e]);
  const bias = given.bias ? decode(given.bias).data : range(out, () => 0);
  const y = range(rows * out, (e) => {
    const t = Math.floor(e / out), o = e % out;
    return sum(inn, (i) => x.data[t * inn + i] * seen(t, o, i)) + bias[o];
  });
  const dx = range(rows * inn, (e) => {
    const t = Math.floor(e / inn), i = e % inn;
    return sum(out, (o) => dy.data[t * out + o] * seen(t, o, i));
  });
  const C = range(D * d, () => 0); // ∂L/∂M
  range(out, (o) => range(inn, (i) => {
    C[place(o, i)] = sum(rows, (t) => dy.data[t * out + o] * kept[t * inn + i]);
  }));
  const P = (j, k, i) => s * sum(D, (o) => b(j, k, o) * C[o * d + i]) * a(k, i);
  return {
    delta_weight: range(out, (o) => range(inn, (i) => delta(o, i))),
    y: y.length ? nested(dy.shape, y) : given.dy, // an empty array keeps its shape in the vectors' own form
    dx: dx.length ? nested(x.shape, dx) : given.x,
    dlambda: range(n, (j) => range(r, (k) => sum(d, (i) => P(j, k, i) * G.data[j * d + i]))),
    dgamma: range(n, (j) => range(d, (i) => sum(r, (k) => P(j, k, i) * L.data[j * r + k]))),
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { id, kind, given } = JSON.parse(line).case;
  const answer = kind === "layer" ? { id, results: layer(given) } : { id, unsupported: `no ${kind} here` };
  console.log(JSON.stringify(answer));
}

// What a run computes, from the numbers in the page: networks, q(z | x), p(z), p(x | z) and the ELBO.
// An image or a vector is {shape: [C, H, W], data: Float32Array}; a vector of L values has the shape [L, 1, 1].
"use strict";

const list = (count, f) => Array.from({length: count}, (_, i) => f(i));
const sum = (values) => values.reduce((total, value) => total + value, 0), mean = (values) => sum(values) / values.length;
const dot = (one, other) => one.reduce((total, value, i) => total + value * other[i], 0);
const unit = (z, norm = Math.hypot(...z) || 1) => Array.from(z, (one) => one / norm);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const sigmoid = (l) => (l >= 0 ? 1 / (1 + Math.exp(-l)) : Math.exp(l) / (1 + Math.exp(l)));
const softplus = (l) => Math.max(l, 0) + Math.log1p(Math.exp(-Math.abs(l)));
const logSumExp = (values, most = Math.max(...values)) => most + Math.log(sum(values.map((one) => Math.exp(one - most))));
const vector = (data) => ({shape: [data.length, 1, 1], data: Float32Array.from(data)});

// Return the content of the page: zlib(length of the JSON, JSON, tensors), in base64.
async function unpack(base64) {
  const packed = Uint8Array.from(atob(base64.trim()), (one) => one.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer(), end = 4 + new DataView(buffer).getUint32(0, true);
  const kinds = {f8: (b) => new Float64Array(b), f4: (b) => new Float32Array(b), f2: (b) => fromHalf(new Uint16Array(b)), u1: (b) => new Uint8Array(b), i1: (b) => new Int8Array(b)};
  const read = ({tensor: [kind, start, stop, shape], step}, data = kinds[kind](buffer.slice(end + start, end + stop))) =>
    ({shape, data: kind === "i1" ? Float32Array.from(data, (one) => one * step) : data});
  const text = new TextDecoder().decode(new Uint8Array(buffer, 4, end - 4));
  return JSON.parse(text, (_, value) => (value && value.tensor ? read(value) : value));
}
const fromHalf = (halves) => Float32Array.from(halves, (half) => {
  const sign = half & 0x8000 ? -1 : 1, exponent = (half >> 10) & 31, fraction = (half & 1023) / 1024;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
});

// The functions of kernel.wat, or null: where the browser does not take them, the loops below do the same.
let simd = (() => {
  const bytes = Uint8Array.from(atob("{{ kernel }}"), (one) => one.charCodeAt(0));
  try {
    return new WebAssembly.Instance(new WebAssembly.Module(bytes)).exports;
  } catch {
    return null;
  }
})();
// Call a function of the kernel with arrays, which it reads in its own memory and of which it changes the first.
function onKernel(name, arrays, ...sizes) {
  const starts = arrays.reduce((found, {length}) => [...found, found.at(-1) + 4 * Math.ceil(length / 4)], [0]), {memory} = simd;
  const missing = 4 * starts.at(-1) - memory.buffer.byteLength;
  if (missing > 0) memory.grow(Math.ceil(missing / 65536));
  const values = new Float32Array(memory.buffer);
  arrays.forEach((one, i) => values.set(one, starts[i]));
  simd[name](...arrays.map((_, i) => 4 * starts[i]), ...sizes);
  arrays[0].set(values.subarray(0, arrays[0].length));
}

function addProduct(out, a, b, M, K, N) { // out (M, N) += a (M, K) b (K, N); a is often 0, as behind a ReLU
  if (simd && N % 8 === 0) return onKernel("product", [out, a, b], M, K, N);
  for (let m = 0; m < M; m++)
    for (let k = 0; k < K; k++) {
      const one = a[m * K + k];
      if (one) for (let n = 0, to = m * N, from = k * N; n < N; n++) out[to + n] += one * b[from + n];
    }
}
function product(a, b, M, K, N) {
  const out = new Float32Array(M * N);
  addProduct(out, a, b, M, K, N);
  return out;
}
// sums (height, width, C) += each tap of rows (H, W, size, size, C), where a transposed convolution puts it.
function addScattered(sums, rows, H, W, height, width, size, stride, padding, C) {
  if (simd && C % 4 === 0) return onKernel("scatter", [sums, rows], H, W, height, width, size, stride, padding, C);
  for (let pixel = 0, from = 0; pixel < H * W; pixel++)
    for (let tap = 0; tap < size ** 2; tap++, from += C) {
      const y = Math.floor(pixel / W) * stride - padding + Math.floor(tap / size), x = (pixel % W) * stride - padding + (tap % size);
      if (y < 0 || y >= height || x < 0 || x >= width) continue;
      for (let c = 0, to = (y * width + x) * C; c < C; c++) sums[to + c] += rows[from + c];
    }
}
function transposed(a, rows, columns) {
  const out = new Float32Array(a.length);
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) out[c * rows + r] = a[r * columns + c];
  return out;
}
function filled(bias, channels, area) { // with the bias of each channel
  const out = new Float32Array(channels * area);
  for (let c = 0; bias && c < channels; c++) out.fill(bias.data[c], c * area, (c + 1) * area);
  return out;
}
const elementwise = (f) => ({shape, data}) => {
  const out = new Float32Array(data.length);
  for (let i = 0; i < out.length; i++) out[i] = f(data[i]);
  return {shape, data: out};
};

const OPERATIONS = {
  linear(x, {weight, bias}) {
    const [size, inputs] = weight.shape, out = filled(bias, size, 1);
    for (let o = 0, at = 0; o < size; o++) {
      let total = 0;
      for (let i = 0; i < inputs; i++, at++) total += weight.data[at] * x.data[i];
      out[o] += total;
    }
    return {shape: [size, 1, 1], data: out};
  },
  conv({shape: [C, H, W], data}, {weight, bias, kernel, stride, padding}) { // columns: what each tap of the kernel meets
    const [channels, taps] = weight.shape, [height, width] = [H, W].map((side) => Math.floor((side + 2 * padding - kernel) / stride) + 1);
    const columns = new Float32Array(taps * height * width), out = filled(bias, channels, height * width);
    for (let tap = 0, at = 0; tap < taps; tap++) {
      const kx = tap % kernel, ky = Math.floor(tap / kernel) % kernel, c = Math.floor(tap / kernel ** 2);
      for (let y = ky - padding; y < ky - padding + height * stride; y += stride)
        for (let x = kx - padding; x < kx - padding + width * stride; x += stride, at++)
          if (y >= 0 && y < H && x >= 0 && x < W) columns[at] = data[(c * H + y) * W + x];
    }
    addProduct(out, weight.data, columns, channels, taps, height * width);
    return {shape: [channels, height, width], data: out};
  },
  "conv-transpose"({shape: [C, H, W], data}, {weight, bias, kernel, stride, padding, more}) { // weight (C, taps, channels)
    const channels = weight.shape[1] / kernel ** 2, [height, width] = [H, W].map((side, i) => (side - 1) * stride - 2 * padding + kernel + more[i]);
    const rows = product(transposed(data, C, H * W), weight.data, H * W, C, weight.shape[1]);
    const sums = transposed(filled(bias, channels, height * width), channels, height * width);
    addScattered(sums, rows, H, W, height, width, kernel, stride, padding, channels);
    return {shape: [channels, height, width], data: transposed(sums, height * width, channels)};
  },
  affine({shape, data}, {scale, shift}) {
    const area = shape[1] * shape[2];
    return {shape, data: data.map((one, i) => one * scale.data[(i / area) | 0] + shift.data[(i / area) | 0])};
  },
  "group-norm"({shape, data}, {groups, eps, scale, shift}) {
    const size = data.length / groups, out = new Float32Array(data.length);
    for (let start = 0; start < data.length; start += size) {
      const part = data.subarray(start, start + size), center = mean(part);
      const deviation = Math.sqrt(part.reduce((total, one) => total + (one - center) ** 2, 0) / size + eps);
      out.set(part.map((one) => (one - center) / deviation), start);
    }
    return OPERATIONS.affine({shape, data: out}, {scale, shift});
  },
  relu: elementwise((one) => (one > 0 ? one : 0)), tanh: elementwise(Math.tanh), silu: elementwise((l) => l * sigmoid(l)),
  softplus: elementwise(softplus), elu: elementwise((one) => (one > 0 ? one : Math.expm1(one))),
  "leaky-relu": (x, {slope}) => elementwise((one) => (one > 0 ? one : slope * one))(x),
  glu: ({data}) => vector(data.subarray(0, data.length / 2).map((one, i) => one * sigmoid(data[data.length / 2 + i]))),
  softmax: ({data}, _, total = logSumExp(data)) => vector(data.map((one) => Math.exp(one - total))),
  sum: (x, {branches}) => vector(branches.map((one) => forward(one, x).data).reduce((total, data) => total.map((one, i) => one + data[i]))),
  reshape: (x, {shape}) => ({shape, data: x.data}), first: (x, {size}) => vector(x.data.subarray(0, size)),
};
const forward = (operations, x) => operations.reduce((value, op) => OPERATIONS[op.op](value, op), x);
const outputs = (operations, values) => Array.from(forward(operations, vector(values)).data);

// Random numbers, by a generator that an answer may start anew, and special functions.
const unseeded = () => Math.random();
let random = unseeded;
const xorshift = (x) => () => (x ^= x << 13, x ^= x >>> 17, x ^= x << 5, (x >>> 0) / 2 ** 32); // Marsaglia, 2003
const gauss = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
const gaussians = (count) => list(count, gauss);
function stirling(a) { // log Gamma(a) and its derivative, by Stirling's series at a number above 8
  let log = 0, slope = 0;
  for (; a < 8; a++) [log, slope] = [log - Math.log(a), slope - 1 / a];
  const s = 1 / (a * a), half = 0.5 * Math.log(2 * Math.PI);
  log += (a - 0.5) * Math.log(a) - a + half + (1 / 12 - s * (1 / 360 - s * (1 / 1260 - s * (1 / 1680 - s / 1188)))) / a;
  return [log, slope + Math.log(a) - 0.5 / a - s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s / 132))))];
}
const logGamma = (a) => stirling(a)[0], digamma = (a) => stirling(a)[1];
function gamma(shape) { // Marsaglia and Tsang
  if (shape < 1) return gamma(shape + 1) * random() ** (1 / shape);
  for (const d = shape - 1 / 3; ; ) {
    const n = gauss(), v = (1 + n / Math.sqrt(9 * d)) ** 3;
    if (v > 0 && Math.log(1 - random()) < 0.5 * n * n + d - d * v + d * Math.log(v)) return d * v;
  }
}

// Normals over independent dimensions, {loc, scale}.
const bounded = (output, logVariance = false) => ({
  loc: output.slice(0, output.length / 2),
  scale: output.slice(output.length / 2).map((one) => Math.exp(clamp(logVariance ? one / 2 : one, -7, 7))),
});
const standard = (size) => ({loc: Array(size).fill(0), scale: Array(size).fill(1)});
const drawNormal = ({loc, scale}) => loc.map((one, i) => one + scale[i] * gauss());
const logNormal = ({loc, scale}, z) =>
  loc.map((one, i) => -0.5 * ((z[i] - one) / scale[i]) ** 2 - Math.log(scale[i]) - 0.5 * Math.log(2 * Math.PI));

// Masked autoregressive transforms, y_i = x_i exp(a_i) + b_i with a and b of x before i and of a context; and planar ones.
function affineOf(network, x, context) {
  const output = outputs(network, [...x, ...context]), scales = output.filter((_, i) => i % 2);
  return {shift: output.filter((_, i) => i % 2 === 0), logScale: scales.map((one) => one / (1 + Math.abs(one / Math.log(1e-3))))};
}
const flowed = (transforms, z, context = []) => transforms.reduce(({y, logDet}, network) => {
  const {shift, logScale} = affineOf(network, y, context);
  return {y: Array.from(y, (one, i) => one * Math.exp(logScale[i]) + shift[i]), logDet: logDet + sum(logScale)};
}, {y: z, logDet: 0});
const unflowed = (transforms, z) => transforms.reduceRight((y, network) => list(y.length, (pass) => pass).reduce((x) => {
  const {shift, logScale} = affineOf(network, x, []);
  return y.map((one, i) => (one - shift[i]) * Math.exp(-logScale[i]));
}, y.map(() => 0)), z);
function planar(parameters, size, y) {
  let logDet = 0;
  for (let at = 0; at < parameters.length; at += 2 * size + 1) {
    const u = parameters.slice(at, at + size).map((one) => one / size), w = parameters.slice(at + size, at + 2 * size);
    const product = clamp(dot(w, u), -7, 1e5), slope = product > 0 ? product : Math.expm1(product);
    const t = Math.tanh(dot(w, y) + parameters[at + 2 * size]), along = (slope - dot(w, u)) / Math.max(dot(w, w), 1e-38);
    y = y.map((one, i) => one + (u[i] + along * w[i]) * t);
    logDet += Math.log1p(slope * (1 - t * t));
  }
  return {y, logDet};
}
// The power spherical distribution: the log of its constant, and its entropy, at the concentration k.
const logSphere = (size, k, b = (size - 1) / 2) => logGamma(2 * b + k) - logGamma(b + k) - b * Math.log(4 * Math.PI);
const entropySphere = (size, k, b = (size - 1) / 2) => -k * (digamma(b + k) - digamma(2 * b + k)) - logSphere(size, k);

const ofBits = (logits) => ({ // a distribution of bits, as prior and as posterior
  logits, loc: logits.map(sigmoid), draw: () => logits.map((one) => Number(random() < sigmoid(one))),
  logProb: (z) => logits.map((one, i) => z[i] * one - softplus(one)),
});

// p(z) of the top layer: draw(), and logProb(z), a list of terms; {} for one that is flat or that the page does not compute.
const PRIORS = {
  normal: ({size}) => ({draw: () => gaussians(size), logProb: (z) => logNormal(standard(size), z), isNormal: true}),
  sphere: ({size}) => ({draw: () => unit(gaussians(size)), logProb: () => [logSphere(size, 0)]}),
  flow({size, transforms}) {
    const log = ({y, logDet}) => [sum(logNormal(standard(size), y)) + logDet];
    return {draw: () => unflowed(transforms, gaussians(size)), logProb: (z) => log(flowed(transforms, z))};
  },
  mixture({size, loc, scale, logits}) {
    const row = (one, k) => Array.from(one.data.subarray(k * size, (k + 1) * size)), total = logSumExp(logits.data);
    const normals = list(loc.shape[0], (k) => ({loc: row(loc, k), scale: row(scale, k), log: logits.data[k] - total}));
    const draw = (left = random()) => drawNormal(normals.find(({log}) => (left -= Math.exp(log)) <= 0) || normals[0]);
    return {draw: () => draw(), logProb: (z) => [logSumExp(normals.map((one) => one.log + sum(logNormal(one, z))))], normals};
  },
  bits: ({logits: {data}}) => ofBits(Array.from(data)),
  flat: () => ({}), unknown: () => ({}),
};

// q(z | x): at(given) is {z, logQ, a list of terms}; draw() is what `at` takes, z, or of a flow a draw of its base.
const ofNormal = (normal) => ({...normal, draw: () => drawNormal(normal), at: (z) => ({z, logQ: logNormal(normal, z)})});
function ofTril(loc, tril) { // a Normal, by the Cholesky factor of its covariance
  const noise = (z) => loc.reduce((found, one, i) => [...found, (z[i] - one - dot(found, tril[i])) / tril[i][i]], []);
  const log = (e) => logNormal(standard(loc.length), e).map((one, i) => one - Math.log(tril[i][i]));
  const draw = (e = gaussians(loc.length)) => loc.map((one, i) => one + dot(e, tril[i]));
  return {loc, tril, draw: () => draw(), at: (z) => ({z, logQ: log(noise(z))})};
}
function normalOf(points, logs) { // `_normal_of` of marginal/importance.py
  const size = points[0].length, least = Math.min(5 * size, logs.length), isFew = logs.filter(Number.isFinite).length < least;
  const weightsOf = (power, total = logSumExp(logs.map((one) => power * one))) => logs.map((one) => (isFew ? 1 / logs.length : Math.exp(power * one - total)));
  let power = 1, weights = weightsOf(1);
  while (1 / dot(weights, weights) < 0.999 * least && power > 1e-6) weights = weightsOf((power /= 1.5));
  const loc = list(size, (i) => sum(points.map((z, k) => weights[k] * z[i]))), tril = [];
  for (let i = 0; i < size; i++) {
    tril.push(Array(size).fill(0));
    for (let j = 0; j <= i; j++) {
      const rest = 1.5 * sum(points.map((z, k) => weights[k] * (z[i] - loc[i]) * (z[j] - loc[j]))) - dot(tril[i].slice(0, j), tril[j]);
      tril[i][j] = i === j ? Math.sqrt(Math.max(rest, 1e-8)) : rest / tril[j][j];
    }
  }
  return ofTril(loc, tril);
}
const ofFlow = (output, size, transform, base = bounded(output.slice(0, 2 * size))) => ({
  draw: () => drawNormal(base),
  at: (e, {y, logDet} = transform(e, output.slice(2 * size))) => ({z: y, logQ: [sum(logNormal(base, e)) - logDet]}),
});
const POSTERIORS = {
  normal: ({log_variance: isVariance}, output) => ofNormal(bounded(output, isVariance)),
  bits: (_, logits) => ({...ofBits(logits), at: (z) => ({z, logQ: ofBits(logits).logProb(z)})}),
  delta: (_, loc) => ({loc, draw: () => loc, at: (z) => ({z, logQ: [0]})}),
  flow: ({size, transforms}, output) => ofFlow(output, size, (e, rest) => flowed(transforms, e, rest)),
  planar: ({size}, output) => ofFlow(output, size, (e, rest) => planar(rest, size, e)),
  "normal-full"({size}, output) { // scale_tril has rows i, of which below the diagonal are i values
    const loc = output.slice(0, size), below = (i, j) => output[2 * size + (i * (i - 1)) / 2 + j] / size;
    const diagonal = output.slice(size, 2 * size).map((one) => Math.exp(clamp(one, -7, 7)));
    const tril = list(size, (i) => list(size, (j) => (j < i ? below(i, j) : j > i ? 0 : diagonal[i])));
    return ofTril(loc, tril);
  },
  "power-spherical"({size}, output) {
    const loc = unit(output.slice(0, size).map((one) => one + 1e-6)), k = Math.exp(clamp(output[size], -7, 11));
    const quarter = (z) => Math.min(Math.hypot(...loc.map((one, i) => z[i] - one)) ** 2 / 4, 1 - 2 ** -23);
    const log = (z) => k * Math.log1p(-quarter(z)) + logSphere(size, k);
    const draw = (noise = gaussians(size), one = gamma((size - 1) / 2 + k), other = gamma((size - 1) / 2)) => {
      const along = one / (one + other), part = dot(noise, loc), across = unit(noise.map((n, i) => n - part * loc[i]));
      return unit(loc.map((l, i) => (2 * along - 1) * l + 2 * Math.sqrt(along * (1 - along)) * across[i]));
    };
    return {loc, draw: () => draw(), at: (z) => ({z, logQ: [log(z)]}), sphereRate: entropySphere(size, 0) - entropySphere(size, k)};
  },
  "bottom-up": ({sizes, first, networks}, _, x) =>
    ofLayers(sizes, list(sizes.length, (l) => l), posteriorOf(first, x), (l, below) => bounded(outputs(networks[l - 1], below))),
  "top-down"({sizes, networks}, output) {
    const top = bounded(output.slice(0, 2 * sizes.at(-1))), context = output.slice(2 * sizes.at(-1));
    return {...ofLayers(sizes, fromTop(sizes), top, (l, above) => bounded(outputs(networks[l], [...context, ...above]))), top};
  },
  ladder({sizes, up}, output, _, down) { // each layer the product of its Normal on the way up and that of the prior
    const normals = [];
    for (let l = 0; l < sizes.length; output = l < up.length ? outputs(up[l], output.slice(2 * sizes[l])) : output, l++)
      normals.push(bounded(output.slice(0, 2 * sizes[l])));
    const product = (l, above, q = normals[l], p = bounded(outputs(down[l], above))) => {
      const scale = q.scale.map((one, i) => (one ** -2 + p.scale[i] ** -2) ** -0.5);
      return {scale, loc: scale.map((one, i) => one ** 2 * (q.loc[i] / q.scale[i] ** 2 + p.loc[i] / p.scale[i] ** 2))};
    };
    return {...ofLayers(sizes, fromTop(sizes), normals.at(-1), product), top: normals.at(-1)};
  },
};
const posteriorOf = (posterior, x, down) =>
  POSTERIORS[posterior.kind](posterior, posterior.encoder && Array.from(forward(posterior.encoder, x).data), x, down);

// Layers of Normals, each given the one drawn before it; order is that of the draws.
const fromTop = (sizes) => list(sizes.length, (l) => sizes.length - 1 - l);
const split = (sizes, z) => sizes.map((size, l) => Array.from(z.slice(sum(sizes.slice(0, l)), sum(sizes.slice(0, l)) + size)));
function ofLayers(sizes, order, start, next) {
  const layered = (choose) => {
    const parts = [], logQ = [];
    order.forEach((l, place) => {
      const q = place ? next(l, parts[order[place - 1]]) : start;
      parts[l] = choose(q, l);
      logQ[l] = logNormal(q, parts[l]);
    });
    return {z: parts.flat(), logQ: logQ.flat()};
  };
  const at = (z) => layered((_, l) => split(sizes, z)[l]);
  return {draw: () => layered(drawNormal).z, central: () => layered((q) => q.loc).z, at};
}

// p(x | z) of a pixel given the decoder's output l: mean, and the logarithm of the density or probability of x.
const SERIES = [1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250]; // of log(sinh(h) / h) in h^2
const LIKELIHOODS = {
  bernoulli: () => ({mean: sigmoid, logProb: (x, l) => x * l - softplus(l)}),
  normal: (scale, loc) => ({mean: loc, logProb: (x, l) => logNormal({loc: [loc(l)], scale: [scale]}, [x])[0]}),
  "continuous-bernoulli": () => ({
    mean(l, size = Math.abs(l), distance = 1 / size - Math.exp(-size) / -Math.expm1(-size)) {
      if (size >= 0.5) return l > 0 ? 1 - distance : distance;
      return 0.5 + (SERIES.reduceRight((total, c, i) => (total * l * l) / 4 + (i + 1) * c, 0) * l) / 2;
    },
    logProb(x, l, size = Math.abs(l)) {
      if (size < 0.5) return (x - 0.5) * l - SERIES.reduceRight((total, c) => ((total + c) * l * l) / 4, 0);
      return Math.log(size) - Math.log1p(-Math.exp(-size)) - size * (l > 0 ? 1 - x : x);
    },
  }),
  "discretized-logistic": (scale) => ({
    mean(l, loc = 0.5 + l / 2) { // of levels so far from loc that their sigmoid is 1 or 0, no sigmoid is computed
      const first = clamp(Math.round(255 * (loc - 30 * scale)), 0, 255), end = Math.min(255, 255 * (loc + 30 * scale));
      let total = first;
      for (let k = first + 1; k <= end; k++) total += sigmoid((loc - (k - 0.5) / 255) / scale);
      return total / 255;
    },
    logProb: (x, l) => logLevel(x, 0.5 + l / 2, scale),
  }),
};
function logLevel(x, loc, scale, lower = (x - 0.5 / 255 - loc) / scale, upper = lower + 1 / 255 / scale) {
  if (x > 1 - 0.5 / 255 || x < 0.5 / 255) return x > 0.5 ? -softplus(lower) : -softplus(-upper);
  return Math.log(-Math.expm1(-1 / 255 / scale)) - softplus(-upper) - softplus(lower);
}
// p(x | z) of an image (C, H, W) given the decoder's outputs l: its mean, and log p(x | z).
const IMAGE_LIKELIHOODS = {
  "discretized-logistic-mixture": ({scale, logistics, shape: [C, H, W], kernel, bound}) => {
    const S = H * W, firstLoc = logistics > 1 ? logistics : 0, firstScale = firstLoc + logistics * C;
    const firstColour = firstScale + logistics * C;
    const logWeights = (l, s, of = list(logistics, (k) => (firstLoc ? l[k * S + s] : 0)), total = logSumExp(of)) =>
      of.map((one) => one - total);
    const loc = (l, k, c, s) => 0.5 + l[(firstLoc + k * C + c) * S + s] / 2;
    const mean = (l) => Float32Array.from({length: C * S}, (_, i) => {
      const c = Math.floor(i / S), s = i % S;
      return sum(logWeights(l, s).map((one, k) => Math.exp(one) * clamp(loc(l, k, c, s), 0, 1)));
    });
    const before = list(12, (n) => [Math.floor(n / 5) - 2, (n % 5) - 2]); // rows and columns from the pixel
    // The shift of each colour of the pixel s, of residuals r; the weights sum to the bound at most.
    const shifts = (l, r, s) => list(C, (c) => {
      let shift = 0, total = 1e-6;
      for (let d = 0; bound && d < C; d++) for (let n = 0; n < 12; n++) {
        const weight = kernel[(c * C + d) * 15 + n], row = Math.floor(s / W) + before[n][0], column = (s % W) + before[n][1];
        total += Math.abs(weight);
        if (row >= 0 && column >= 0 && column < W) shift += weight * r[d * S + row * W + column];
      }
      for (let b = 0; bound && b < c; b++) {
        const weight = Math.tanh(l[(firstColour + (c * (c - 1)) / 2 + b) * S + s]);
        total += Math.abs(weight);
        shift += weight * r[b * S + s];
      }
      return shift * Math.min(1, bound / total);
    });
    const logProb = (x, l) => {
      const r = mean(l).map((one, i) => x[i] - one);
      return sum(list(S, (s) => {
        const shift = shifts(l, r, s), weights = logWeights(l, s);
        return logSumExp(weights.map((weight, k) => weight + sum(list(C, (c) => {
          const logScale = clamp(l[(firstScale + k * C + c) * S + s], -5, 3);
          return logLevel(x[c * S + s], loc(l, k, c, s) + shift[c], scale * Math.exp(logScale));
        }))));
      }));
    };
    return {mean, logProb};
  },
};
function likelihoodOf(shown) {
  if (!shown) return null;
  if (IMAGE_LIKELIHOODS[shown.kind]) return IMAGE_LIKELIHOODS[shown.kind](shown);
  const range = {identity: (l) => l, sigmoid, tanh: Math.tanh}[shown.mean];
  const pixel = LIKELIHOODS[shown.kind](shown.scale, range);
  return {
    mean: (l) => l.map((one) => pixel.mean(one)),
    logProb: (x, l) => l.reduce((total, one, i) => total + pixel.logProb(x[i], one), 0),
  };
}

// The VAE of the page, given labels y if it takes any. With several layers, z is z1, z2, ... one after another.
function vaeOf({prior, posterior, likelihood, decoder, shape, plane, y = []}) {
  const {sizes, networks} = prior, last = sizes.length - 1, top = PRIORS[prior.top.kind](prior.top);
  const pX = likelihoodOf(likelihood);
  const given = (l, above) => bounded(outputs(networks[l], above)); // p(z_l | z_l+1)
  const below = (zTop, choose) => fromTop(sizes).slice(1).reduce((parts, l) => [choose(given(l, parts[0]), l), ...parts], [zTop]);
  const decode = (z) => forward(decoder, vector([...z, ...y])).data;
  const joined = (x) => !y.length ? {shape, data: x} : !plane ? vector([...x, ...y]) : // a plane is one channel more
    {shape: shape.with(0, shape[0] + 1), data: Float32Array.from([...x, ...outputs(plane, y)])};
  const exactRates = (q) => { // KL(q || p) of each latent where it has a closed form, as in `pvae.elbos.terms.exact_rate`
    if (q.sphereRate !== undefined && prior.top.kind === "sphere") return [q.sphereRate];
    if (q.logits && top.logits) return q.logits.map((one, i) =>
      q.loc[i] * (one - top.logits[i]) - softplus(one) + softplus(top.logits[i]));
    if (!top.isNormal || last > 0 || !(q.scale || q.tril)) return null;
    const variance = (i) => (q.tril ? dot(q.tril[i], q.tril[i]) : q.scale[i] ** 2);
    return q.loc.map((loc, i) => 0.5 * (variance(i) + loc * loc - 1) - Math.log(q.tril ? q.tril[i][i] : q.scale[i]));
  };
  const vae = {
    sizes, hasPrior: top.draw !== undefined, canEncode: posterior !== null,
    hasDensity: prior.top.kind !== "flat", isSphere: prior.top.kind === "sphere", isBits: Boolean(top.logits), normals: top.normals,
    decode, mean: (z) => pX.mean(decode(z)),
    posterior: (x) => posteriorOf(posterior, joined(x), networks),
    drawPrior: () => below(top.draw(), drawNormal).flat(),
    logLikelihood: (x, z) => pX.logProb(x, decode(z)),
    logPrior: (z) => split(sizes, z).flatMap((part, l, parts) =>
      l === last ? top.logProb(part) : logNormal(given(l, parts[l + 1]), part)),
    // z of all layers from that of the top one, and each other layer's distance from its prior mean in standard deviations
    join: (zTop, offsets) => below(zTop, (p, l) => p.loc.map((one, i) => one + p.scale[i] * offsets[l][i])).flat(),
    offsets: (z) => split(sizes, z).slice(0, last).map((part, l) => {
      const p = given(l, split(sizes, z)[l + 1]);
      return part.map((one, i) => (one - p.loc[i]) / p.scale[i]);
    }),
    // The ELBO of x and its parts in nats, as `pvae score` computes them, from draws: z, or of a flow draws of its base.
    score(x, draws, q = vae.posterior(x)) {
      const points = draws.map((draw) => q.at(draw)), distortions = points.map(({z}) => -vae.logLikelihood(x, z));
      const result = {q, points, distortions, distortion: mean(distortions)}, exact = vae.hasDensity ? exactRates(q) : null;
      if (!vae.hasPrior && !exact) return result;
      const terms = exact ? [exact] : points.map(({z, logQ}) => {
        const logP = vae.logPrior(z);
        return logQ.length === logP.length ? logQ.map((one, i) => one - logP[i]) : [sum(logQ) - sum(logP)];
      });
      const rates = terms[0].map((_, i) => mean(terms.map((one) => one[i]))), rate = sum(rates);
      const totals = points.map((_, s) => sum(terms[exact ? 0 : s])); // the rate of each draw
      return {...result, rates, rate, totals, isExact: exact !== null, elbo: -result.distortion - rate};
    },
  };
  return vae;
}

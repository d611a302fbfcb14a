// A VAE of two latents that trains in the page: encoder and decoder of one hidden layer, q(z | x) Normal, x of zeros and
// ones, Adam. Matrices are Float32Array, row after row; a weight is (inputs, outputs), the transpose of torch's.
"use strict";

const HIDDEN = 64, LATENTS = 2, BATCH = 50;
const EVERY = 100, SCORED = 24; // steps from one evaluation to the next, and the images that it scores
const GRID = 51, REACH = 4, NEAR = 13; // places of z in a row, of a grid within +-REACH, and of one around q(z | x)

class DenseNetwork { // Linear layers with a ReLU between them
  constructor(sizes) { // weights and biases uniform in +-1 / sqrt(inputs), as torch's Linear
    const drawn = (count, inputs) => Float32Array.from({length: count}, () => (2 * Math.random() - 1) / Math.sqrt(inputs));
    this.layers = sizes.slice(1).map((outputs, l) =>
      ({inputs: sizes[l], outputs, weight: drawn(sizes[l] * outputs, sizes[l]), bias: drawn(outputs, sizes[l])}));
  }
  get parameters() {
    return this.layers.flatMap(({weight, bias}) => [weight, bias]);
  }
  // The inputs of each layer, and the output (count, outputs) last.
  values(x, count) {
    return this.layers.reduce((values, {inputs, outputs, weight, bias}, l) => {
      const out = product(values[l], weight, count, inputs, outputs), isHidden = l + 1 < this.layers.length;
      for (let i = 0; i < out.length; i++) {
        out[i] += bias[i % outputs];
        if (isHidden && out[i] < 0) out[i] = 0;
      }
      return [...values, out];
    }, [x]);
  }
  // From d loss / d output, the gradients of the parameters in their order, and of the input if asked for.
  gradients(values, ofOutput, count, needsInput = false) {
    let of = ofOutput, found = [];
    for (let l = this.layers.length - 1; l >= 0; l--) {
      const {inputs, outputs, weight} = this.layers[l], ofBias = new Float32Array(outputs);
      for (let i = 0; i < of.length; i++) ofBias[i % outputs] += of[i];
      found = [product(transposed(values[l], count, inputs), of, inputs, count, outputs), ofBias, ...found];
      if (l === 0 && !needsInput) break;
      of = product(of, transposed(weight, inputs, outputs), count, outputs, inputs);
      if (l > 0) of.forEach((_, i) => values[l][i] > 0 || (of[i] = 0));
    }
    return {parameters: found, input: of};
  }
}

class DenseVae {
  constructor(inputs, hidden = HIDDEN) {
    this.inputs = inputs;
    this.encoder = new DenseNetwork([inputs, hidden, 2 * LATENTS]);
    this.decoder = new DenseNetwork([LATENTS, hidden, inputs]);
    this.steps = 0;
    this.moments = this.parameters.map((one) => [new Float32Array(one.length), new Float32Array(one.length)]);
  }
  get parameters() {
    return [...this.encoder.parameters, ...this.decoder.parameters];
  }
  // loc and scale (count, 2) of q(z | x), where the encoder's output is loc and log scale.
  posterior(output, count) {
    const of = (first, f) => Float32Array.from({length: count * LATENTS}, (_, i) =>
      f(output[Math.floor(i / LATENTS) * 2 * LATENTS + first + (i % LATENTS)]));
    return {loc: of(0, (one) => one), scale: of(LATENTS, (one) => Math.exp(clamp(one, -7, 7)))};
  }
  logits(z) {
    return this.decoder.values(z, z.length / LATENTS).at(-1);
  }
  // The means over a batch x (count, inputs) of distortion and rate, and the gradients of distortion + beta * rate, where
  // z = loc + scale * noise: the rate is KL(q, p) in closed form, and its derivatives are loc and, by log scale, scale^2 - 1.
  lossAndGradients(x, noise, beta) {
    const count = x.length / this.inputs, encoded = this.encoder.values(x, count), output = encoded.at(-1);
    const {loc, scale} = this.posterior(output, count), z = loc.map((one, i) => one + scale[i] * noise[i]);
    const decoded = this.decoder.values(z, count), logits = decoded.at(-1), ofLogits = new Float32Array(logits.length);
    let distortion = 0;
    for (let i = 0; i < logits.length; i++) {
      distortion += softplus(logits[i]) - x[i] * logits[i];
      ofLogits[i] = (sigmoid(logits[i]) - x[i]) / count;
    }
    const ofDecoder = this.decoder.gradients(decoded, ofLogits, count, true), ofOutput = new Float32Array(output.length);
    for (let i = 0; i < loc.length; i++) {
      const at = Math.floor(i / LATENTS) * 2 * LATENTS + (i % LATENTS), isInside = Math.abs(output[at + LATENTS]) < 7;
      ofOutput[at] = ofDecoder.input[i] + (beta * loc[i]) / count;
      const ofLogScale = ofDecoder.input[i] * scale[i] * noise[i] + (beta * (scale[i] ** 2 - 1)) / count;
      ofOutput[at + LATENTS] = isInside ? ofLogScale : 0;
    }
    const ofEncoder = this.encoder.gradients(encoded, ofOutput, count);
    const gradients = [...ofEncoder.parameters, ...ofDecoder.parameters];
    return {distortion: distortion / count, rate: this.rate(loc, scale) / count, gradients};
  }
  rate(loc, scale) { // the sum of KL(q, p)
    return loc.reduce((total, one, i) => total + 0.5 * (one * one + scale[i] ** 2 - 1) - Math.log(scale[i]), 0);
  }
  // A step of Adam, Kingma and Ba, arXiv:1412.6980, algorithm 1, with its constants.
  adam(gradients, learningRate) {
    this.steps++;
    const rate = learningRate / (1 - 0.9 ** this.steps), correction = 1 - 0.999 ** this.steps;
    this.parameters.forEach((parameter, p) => {
      const gradient = gradients[p], [first, second] = this.moments[p];
      for (let i = 0; i < parameter.length; i++) {
        first[i] += 0.1 * (gradient[i] - first[i]);
        second[i] += 0.001 * (gradient[i] ** 2 - second[i]);
        parameter[i] -= (rate * first[i]) / (Math.sqrt(second[i] / correction) + 1e-8);
      }
    });
  }
  // The ELBO of images x (count, inputs) and its parts, means over images and draws; stderr is over draws, and `each` has
  // the ELBO of each image.
  elbo(x, draws = DRAWS) {
    const count = x.length / this.inputs, {loc, scale} = this.posterior(this.encoder.values(x, count).at(-1), count);
    const part = (values, i, size) => values.subarray(i * size, (i + 1) * size), images = list(count, (i) => i);
    const ofDraws = list(draws, () => {
      const logits = this.logits(loc.map((one, i) => one + scale[i] * gauss()));
      return images.map((i) => part(logits, i, this.inputs).reduce((total, l, at) => total + softplus(l) - x[i * this.inputs + at] * l, 0));
    });
    const distortions = ofDraws.map(mean), distortion = mean(distortions), rate = this.rate(loc, scale) / count;
    const each = images.map((i) => -mean(ofDraws.map((one) => one[i])) - this.rate(part(loc, i, LATENTS), part(scale, i, LATENTS)));
    const stderr = Math.sqrt(sum(distortions.map((one) => (one - distortion) ** 2)) / (draws - 1) / draws);
    return {distortion, rate, elbo: -distortion - rate, stderr, each};
  }
  // log p(x) of each image: the logarithm of a sum of p(z) p(x | z) times the area of a cell of z. Near q(z | x) the cells
  // are NEAR x NEAR with sides of 0.75 of its scales, and elsewhere those of a grid that all images share. `coarse` is the
  // sum over every second row and column. A generator, so that the caller can let the page live.
  *logMarginals(x) {
    const count = x.length / this.inputs, columns = transposed(x, count, this.inputs), step = (2 * REACH) / (GRID - 1);
    const {loc, scale} = this.posterior(this.encoder.values(x, count).at(-1), count), offset = (k) => (k - (NEAR - 1) / 2) * 0.75;
    const places = list(GRID, (k) => k * step - REACH), fine = list(count, () => []), coarse = list(count, () => []);
    const isNear = (i, z) => z.every((one, d) => Math.abs(one - loc[2 * i + d]) < 0.75 * (NEAR / 2) * scale[2 * i + d]);
    const add = (i, area, isCoarse, log) => {
      fine[i].push(log + Math.log(area));
      if (isCoarse) coarse[i].push(log + Math.log(4 * area));
    };
    const logJoints = (z, images, ofCount) => { // of z (places, 2) and images as columns (inputs, ofCount)
      const logits = this.logits(z), products = product(logits, images, z.length / LATENTS, this.inputs, ofCount);
      for (let g = 0; g < z.length / LATENTS; g++) {
        let rest = Math.log(2 * Math.PI) + (z[2 * g] ** 2 + z[2 * g + 1] ** 2) / 2;
        for (let l = g * this.inputs; l < (g + 1) * this.inputs; l++) rest += softplus(logits[l]);
        for (let i = 0; i < ofCount; i++) products[g * ofCount + i] -= rest;
      }
      return products;
    };
    for (let row = 0; row < GRID; row++) {
      const found = logJoints(Float32Array.from(places.flatMap((u) => [u, places[row]])), columns, count);
      found.forEach((log, at, _, i = at % count, g = Math.floor(at / count)) =>
        isNear(i, [places[g], places[row]]) || add(i, step ** 2, row % 2 === 0 && g % 2 === 0, log));
      yield;
    }
    for (let i = 0; i < count; i++) {
      const z = list(NEAR ** 2, (g) => [g % NEAR, Math.floor(g / NEAR)].map((k, d) => loc[2 * i + d] + offset(k) * scale[2 * i + d]));
      const found = logJoints(Float32Array.from(z.flat()), x.subarray(i * this.inputs, (i + 1) * this.inputs), 1);
      found.forEach((log, g) =>
        add(i, 0.75 ** 2 * scale[2 * i] * scale[2 * i + 1], g % NEAR % 2 === 0 && Math.floor(g / NEAR) % 2 === 0, log));
      yield;
    }
    return {fine: fine.map((one) => logSumExp(one)), coarse: coarse.map((one) => logSumExp(one))};
  }
}

// The tab "Train one". `bits` has a row of bits for each image, most significant bit first; `colour` and `mark` are those
// of the page's map. Work is done in parts of a few milliseconds, and a frame of the page takes as many as fit in SLICE.
const SLICE = 20, SAMPLES = [2, 6];
function setUpTraining({bits, inner: [height, width], labels}) {
  const area = height * width, [count, bytes] = bits.shape, batch = Math.min(BATCH, count), curves = find("curves");
  const x = (rows) => Float32Array.from({length: rows.length * area}, (_, i) => {
    const pixel = i % area;
    return (bits.data[rows[Math.floor(i / area)] * bytes + (pixel >> 3)] >> (7 - (pixel & 7))) & 1;
  });
  const scored = x(list(Math.min(SCORED, count), (i) => i)), number = (id) => 10 ** Number(find(id).value);
  const training = {};
  function restart() {
    const noise = Float32Array.from(gaussians(SAMPLES[0] * SAMPLES[1] * LATENTS));
    Object.assign(training, {vae: new DenseVae(area), history: [], codes: [], noise});
    training.task = work(training);
    (training.task.next(), draw());
  }
  function* work({vae}) {
    for (let left = []; ; ) {
      if (vae.steps % EVERY === 0) yield* evaluate(training);
      if (left.length < batch) left = list(count, (i) => [Math.random(), i]).sort(([one], [other]) => one - other).map(([, i]) => i);
      const noise = gaussians(batch * LATENTS), {gradients} = vae.lossAndGradients(x(left.splice(0, batch)), noise, number("beta"));
      vae.adam(gradients, number("learning-rate"));
      yield;
    }
  }
  function* evaluate({vae, history}) {
    const codes = [];
    for (let first = 0; first < count; first += 100) {
      const rows = list(Math.min(100, count - first), (i) => first + i);
      codes.push(...vae.posterior(vae.encoder.values(x(rows), rows.length).at(-1), rows.length).loc);
      yield;
    }
    const {fine, coarse} = yield* vae.logMarginals(scored), logP = mean(fine), {each, ...found} = vae.elbo(scored);
    const error = mean(fine.map((one, i) => Math.abs(one - coarse[i])));
    const overImages = (values, middle = mean(values)) => Math.sqrt(sum(values.map((one) => (one - middle) ** 2)) / (values.length - 1) / values.length);
    const errors = {elbo: overImages(each), logP: overImages(fine), gap: overImages(fine.map((one, i) => one - each[i]))};
    history.push({step: vae.steps, ...found, logP, error, errors});
    training.codes = codes;
    draw();
  }
  function frame() {
    for (const start = performance.now(); training.isRunning && performance.now() - start < SLICE; ) training.task.next();
    find("steps").textContent = `${training.vae.steps.toLocaleString("en")} steps`;
    if (training.isRunning) requestAnimationFrame(frame);
  }

  const sized = (canvas, aspect, size = Math.round(canvas.clientWidth * (devicePixelRatio || 1))) =>
    Object.assign(canvas, {width: size, height: Math.round(aspect * size)}).getContext("2d");
  function draw() {
    if (!curves.clientWidth) return; // in a tab that is not open
    (drawCurves(), drawCodes(), drawSamples());
    const last = training.history.at(-1), nats = (value) => value.toFixed(2).replace("-", "\u2212");
    const texts = last && {distortion: nats(last.distortion), rate: nats(last.rate), elbo: `${nats(last.elbo)} \u00b1 ${nats(last.errors.elbo)}`,
      "log-p": `${nats(last.logP)} \u00b1 ${nats(last.errors.logP)}`, gap: `${nats(last.logP - last.elbo)} \u00b1 ${nats(last.errors.gap)}`,
      "of-draws": nats(last.stderr), "of-sums": nats(last.error)};
    ["distortion", "rate", "elbo", "log-p", "gap", "of-draws", "of-sums"].forEach((id) => (find(`train-${id}`).textContent = texts ? texts[id] : ""));
    curves.ariaLabel = last ? `After ${last.step} steps: ELBO ${nats(last.elbo)}, log p(x) ${nats(last.logP)}` : "nothing trained yet";
  }
  function drawCurves() { // without the first fifth, which is far below the rest
    const context = sized(curves, 0.5), scale = devicePixelRatio || 1, {history} = training;
    const shown = history.slice(Math.floor(history.length / 5)), [first, last] = [shown[0], shown.at(-1)];
    if (shown.length < 2) return;
    const low = Math.min(...shown.map(({elbo}) => elbo));
    const high = Math.max(...shown.map(({distortion, logP}) => Math.max(-distortion, logP)));
    const left = 44 * scale, bottom = curves.height - 18 * scale, top = 8 * scale;
    const place = (step, value) => [left + ((step - first.step) / (last.step - first.step)) * (curves.width - left - 8 * scale),
      bottom - ((value - low) / (high - low)) * (bottom - top)];
    const line = (of, entries = shown) => entries.forEach((one) => context.lineTo(...place(one.step, of(one))));
    context.beginPath();
    (line(({logP}) => logP), line(({elbo}) => elbo, shown.toReversed()));
    (Object.assign(context, {fillStyle: css("--warm"), globalAlpha: 0.3}).fill(), (context.globalAlpha = 1));
    const lines = [[({distortion}) => -distortion, "--soft", [5, 5]], [({logP}) => logP, "--warm", []], [({elbo}) => elbo, "--accent", []]];
    for (const [of, colour, dash] of lines) {
      context.beginPath();
      line(of);
      context.setLineDash(dash.map((one) => one * scale));
      Object.assign(context, {strokeStyle: css(colour), lineWidth: 2 * scale}).stroke();
    }
    Object.assign(context, {fillStyle: css("--soft"), font: `${11 * scale}px system-ui, sans-serif`, textAlign: "right"});
    [low, high].forEach((value, i) => context.fillText(Math.round(value).toString().replace("-", "\u2212"), left - 6 * scale, i ? top + 8 * scale : bottom));
    context.fillText(`step ${last.step}`, curves.width - 8 * scale, curves.height - 3 * scale);
    Object.assign(context, {textAlign: "left"}).fillText(`step ${first.step}; nats`, left, curves.height - 3 * scale);
  }
  function drawCodes() {
    const canvas = find("train-map"), context = sized(canvas, 1), scale = devicePixelRatio || 1, half = canvas.width / 2;
    const range = training.codes.reduce((most, one) => Math.max(most, 1.03 * Math.abs(one)), 3.1); // or to the circle of 3
    const toMap = (one) => half * (1 + one / range);
    context.strokeStyle = css("--soft");
    for (const radius of [1, 2, 3]) (context.beginPath(), context.arc(half, half, (half * radius) / range, 0, 7), context.stroke());
    for (let i = 0; i < training.codes.length / LATENTS; i++) {
      const k = labels ? labels.data[i] : 0;
      context.fillStyle = colour(k);
      mark(context, k, [toMap(training.codes[2 * i]), toMap(-training.codes[2 * i + 1])], 2.4 * scale);
      context.fill();
    }
  }
  function drawSamples() {
    const [rows, columns] = SAMPLES, canvas = Object.assign(find("train-samples"), {width: columns * width, height: rows * height});
    const logits = training.vae.logits(training.noise), image = new ImageData(width, height);
    for (let s = 0; s < rows * columns; s++) {
      for (let i = 0; i < area; i++) image.data.set([...Array(3).fill(255 * sigmoid(logits[s * area + i])), 255], 4 * i);
      canvas.getContext("2d").putImageData(image, (s % columns) * width, Math.floor(s / columns) * height);
    }
  }

  find("train-count").textContent = count.toLocaleString("en");
  find("scored-count").textContent = scored.length / area;
  for (const id of ["beta", "learning-rate"]) {
    const input = find(id);
    input.oninput = () => (input.ariaValueText = input.nextElementSibling.textContent = number(id).toPrecision(2));
    input.oninput();
  }
  const run = find("run");
  run.onclick = () => {
    training.isRunning = !training.isRunning;
    run.textContent = training.isRunning ? "Pause" : "Start";
    if (training.isRunning) requestAnimationFrame(frame);
  };
  find("new-weights").onclick = () => (restart(), (find("steps").textContent = ""));
  new ResizeObserver(draw).observe(curves);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  restart();
  return training;
}

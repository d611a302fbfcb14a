// The page of a table: the map of the codes of its rows, sliders of z, and p(x_d | z) of each column d.
"use strict";

const OTHERS = 200, ENOUGH = {own: 400, other: 10}; // rows beside which a row is odd; effective sample sizes of an answer, and of the log p of others,
const DRAWS = {own: [250, 8000], other: [100, 400]}; // for which the first number of draws of z is doubled up to the second

function logTail(x) { // log P(Z > x) of a standard Normal, by a continued fraction or a series
  if (x < 0) return Math.log1p(-Math.exp(logTail(-x)));
  const [logDensity] = logNormal(standard(1), [x]);
  if (x > 3) return logDensity - Math.log(list(60, (k) => 60 - k).reduce((rest, k) => x + k / rest, x));
  let total = 0;
  for (let k = 0, term = x; k < 60; k++, term *= (x * x) / (2 * k + 1)) total += term;
  return Math.log(0.5 - Math.exp(logDensity) * total);
}
const logOfT = (df, t) => logGamma((df + 1) / 2) - logGamma(df / 2) - Math.log(df * Math.PI) / 2 - ((df + 1) / 2) * Math.log1p(t ** 2 / df);
function logTailOfT(df, t) { // log P(T > t) of Student's t, by the points of `log_tail_of_t`
  if (t < 0) return Math.log1p(-Math.exp(logTailOfT(df, -t)));
  const logCosh = (a, more = Math.expm1(a)) => Math.log1p((more * more) / (2 * (1 + more))), x = Math.asinh(t / Math.sqrt(df));
  const length = 1 / Math.sqrt(df + (df * Math.tanh(x)) ** 2), step = 7.4 / 43, total = sum(list(44, (k) => {
    const s = -3.4 + step * k, distance = Math.exp(s - Math.exp(-s));
    return Math.exp(df * (logCosh(x) - logCosh(x + length * distance))) * distance * (1 + Math.exp(-s)) * step;
  }));
  return Math.log(length * total) - df * logCosh(x) - logGamma(df / 2) + logGamma((df + 1) / 2) - Math.log(Math.PI) / 2;
}
// The log-density of on(x) ~ mean + sd y, or that of its step where it was recorded in steps, as `InSteps`; y is Normal or as given.
const NORMAL = {logTail, logDensity: (y) => logNormal(standard(1), [y])[0]};
function logInSteps({step}, mean, sd, x, {logTail, logDensity} = NORMAL, on = Number, logSlope = 0) {
  const [low, high] = [x - step / 2, x + step / 2].map((one) => (on(one) - mean) / sd);
  const [more, less] = (low + high > 0 ? [low, high] : [-high, -low]).map((y) => logTail(y)), change = -Math.expm1(less - more);
  return change > 6e-6 ? more + Math.log(change / step) : logDensity((on(x) - mean) / sd) - Math.log(sd) + logSlope;
}
const logAbove0 = (x) => Math.log(Math.max(x, 1e-300));

// By the kind of a column, from its outputs of the decoder: log p(x_d | z) as a function, and the mean and standard
// deviation; of skewed values, of which `log` has those of the logarithm, also the median and the ends of the central 68 %,
// as far as the mean of a Normal +- its standard deviation; or probabilities.
const ofShares = (shares) => ({shares, logP: (k) => Math.log(shares[k])});
const COLUMNS = {
  real(column, [l, o], {loc, scale, log_scale: s} = column, mean = loc + scale * l, sd = scale * Math.sqrt(Math.exp(2 * Math.min(s + o, 4)) + 1e-6)) {
    return {mean, sd, logP: (x) => logInSteps(column, mean, sd, x)};
  },
  "student-t"(column, [l], {loc, scale, log_scale: s, sd, df} = column, mean = loc + scale * l) {
    const t = {logTail: (y) => logTailOfT(df, y), logDensity: (y) => logOfT(df, y)};
    return {mean, sd, logP: (x) => logInSteps(column, mean, scale * Math.max(Math.exp(s), 1e-3), x, t)};
  },
  positive(column, outputs, {mean, sd} = COLUMNS.real(column, outputs)) {
    const [low, median, high] = [-1, 0, 1].map((sign) => (column.atom || 0) + Math.exp(mean + sign * sd));
    return {mean: (column.atom || 0) + Math.exp(mean + sd ** 2 / 2), median, ends: [low, high], log: {mean, sd}, logP: (x) => logInSteps(column, mean, sd, x, NORMAL, logAbove0, -logAbove0(x))};
  },
  "zero-inflated"(column, outputs, {logP, mean, ...rest} = COLUMNS.positive(column, outputs)) {
    const {atom, step} = column, logit = column.log_odds + outputs[2], isAtom = (x) => Math.abs(x - atom) <= Math.max(1.2e-7 * Math.abs(atom), step / 2);
    const logAtom = logSumExp([-softplus(-logit), step ? logP(0) + Math.log(step) - softplus(logit) : -Infinity]); // with what rounds to it, as `WithAtom`
    return {...rest, mean: atom + sigmoid(-logit) * (mean - atom), share: Math.exp(logAtom), logP: (x) => (isAtom(x) ? logAtom - Math.log(step || 1) : logP(x - atom) - softplus(logit))};
  },
  count({unit, shift, slope, theta}, [l], mean = unit * softplus(slope * l + shift) + 1e-6) {
    const ofPoisson = (x) => x * Math.log(mean) - mean, t = theta, ofGamma = (x) =>
      logGamma(x + t) - logGamma(t) + x * Math.log(mean / (t + mean)) - t * Math.log1p(mean / t);
    return {mean, sd: Math.sqrt(mean + (t ? mean ** 2 / t : 0)), logP: (x) => (t ? ofGamma : ofPoisson)(x) - logGamma(x + 1)};
  },
  binary: (_, [l]) => ofShares([sigmoid(-l), sigmoid(l)]),
  categorical: (_, l, total = logSumExp(l)) => ofShares(l.map((one) => Math.exp(one - total))),
  ordinal: ({cuts}, [l], ends = [-Infinity, ...cuts, Infinity]) =>
    ofShares(ends.slice(1).map((end, k) => sigmoid(end - l) * sigmoid(l - ends[k]) * -Math.expm1(ends[k] - end))),
};
const NODES = list(20, (i) => { // of a standard Normal, between each two of which lies a twentieth
  let [low, high] = [-3, 3];
  for (let k = 0; k < 40; k++) [low, high] = Math.exp(logTail(-(low + high) / 2)) < (i + 0.5) / 20 ? [(low + high) / 2, high] : [low, (low + high) / 2];
  return low;
});
// The mixture of such distributions of one column, by weights that sum to 1; its quantiles by twenty places of each.
function mixed({atom = 0}, parts, weights) {
  const average = (of) => parts.reduce((total, one, k) => total + weights[k] * of(one), 0), [{shares, log, sd}] = parts;
  if (shares) return {shares: shares.map((_, k) => average((one) => one.shares[k]))};
  const mean = average((one) => one.mean);
  if (!log) return {mean, sd: sd === null ? null : Math.sqrt(average((one) => one.sd ** 2 + (one.mean - mean) ** 2))};
  const share = average((one) => one.share ?? 0), rest = parts.map((one, k) => (weights[k] * (1 - (one.share ?? 0))) / (1 - share || 1));
  const places = parts.flatMap(({log: {mean, sd}}, k) => NODES.map((node) => [mean + node * sd, rest[k] / NODES.length])).sort(([x], [y]) => x - y);
  let below = 0;
  const middles = places.map(([, size]) => (below += size) - size / 2);
  function quantile(p) { // on the line between the two places beside it
    const i = clamp(middles.findIndex((one) => one >= p), 1, places.length - 1), along = clamp((p - middles[i - 1]) / (middles[i] - middles[i - 1] || 1), 0, 1);
    return atom + Math.exp((1 - along) * places[i - 1][0] + along * places[i][0]);
  }
  const [from, median, to] = [0.1587, 0.5, 0.8413].map(quantile);
  return {mean, median, ends: [from, to], ...(parts[0].share === undefined ? {} : {share})};
}
function placeOn({is_log: isLog, low, high}, value, on = isLog ? Math.log : Number) { // 0 and 1 at the ends of its bar
  return clamp((on(value) - on(low)) / (on(high) - on(low)), 0, 1);
}
function numberText({date, decimals, origin, suffix, point}, value) {
  const day = new Date(864e5 * (origin + value));
  if (date) return Number.isNaN(day.getTime()) ? "beyond all dates" : day.toISOString().slice(0, date).replace("T", " ");
  return (origin + value).toFixed(decimals).replace(".", point).replace("-", "\u2212") + suffix;
}

async function show() {
  const content = await unpack(find("content").textContent), {columns, rows, splits, texts, labels, rules, steps, file, modelled, planes: [{axes, dims}]} = content;
  const vae = vaeOf(content), isScored = vae.canEncode && vae.hasPrior, takesOut = content.takes_out && isScored, names = content.names.map(subscript), map = find("map"), still = element("canvas"), state = {z: names.map(() => 0), q: null, cloud: [], out: [], set: {}};
  const rowOf = ({shape: [, width], data}, i) => Array.from(data.subarray(i * width, (i + 1) * width));
  const points = rows.map((_, i) => rowOf(content.points, i).slice(0, 2)), isTest = splits.map((one) => one === "test");
  const normals = vae.normals && vae.normals.filter(({log}) => log > -Math.log(10 * vae.normals.length)); // of a prior that is a mixture
  const {middle, range} = viewOf([points, ...(normals || []).map((one) => ellipse(one, axes, 2))], vae);

  // z, and a row x with columns that are taken out (NaN), or set to other values
  const toPlane = (z) => onPlane(axes, z), at = (place) => zAt(place, axes, state.z, vae.isSphere, state), isAtCode = () => state.z === state.code;
  const move = (z) => (Object.assign(state, {z}).frame ||= requestAnimationFrame(drawHere));
  const jump = (z) => (move(vae.isSphere ? unit(z) : z), (state.rest = state.z)); // it stays there when the pointer has left the map
  const decoded = (outputs = Array.from(vae.decode(state.z))) => columns.map((one) => COLUMNS[one.kind](one, one.outputs.map((place) => outputs[place])));
  const xOf = (d, row) => content.x.data[row * columns.length + d], isKnown = (value) => !Number.isNaN(value);
  const xWith = (row, out, set) => columns.map((_, d) => (out.includes(d) ? NaN : set[d] ?? xOf(d, row)));
  const eachOnce = columns.map((_, d) => [...new Map(rows.map((_, i) => [xOf(d, i), i]))].filter(([x]) => isKnown(x)).sort(([x], [y]) => x - y)); // values, each with a row
  function encode(x, row) { // of a value that no row has, features lie on a line: through those of the two values beside it, or outside of the range of the last tenth
    const seen = rowOf(content.features, row);
    columns.forEach(({inputs}, d) => {
      if (!isKnown(x[d])) return inputs.forEach((one) => (seen[one] = 0));
      if (x[d] === xOf(d, row)) return;
      const all = eachOnce[d], last = all.length - 1, k = all.filter(([one]) => one < x[d]).length;
      let [from, to] = [k - 1, k];
      if (k === 0) [from, to] = [0, Math.ceil(0.1 * last)];
      if (k > last) [from, to] = [Math.floor(0.9 * last), last];
      const [[low, i], [high, j]] = [all[from], all[to]], along = high > low ? (x[d] - low) / (high - low) : 0;
      inputs.forEach((one) => (seen[one] = (1 - along) * rowOf(content.features, i)[one] + along * rowOf(content.features, j)[one]));
    });
    return vae.posterior(Float32Array.from(seen));
  }
  function pick(row, out = [], set = {}) {
    const x = xWith(row, out, set), q = vae.canEncode ? encode(x, row) : null;
    Object.assign(state, {row, out, set, x, q, answer: null, isOpen: false, cloud: q ? cloudOf(q, vae) : []});
    find("row").value = rows[row];
    jump(q ? centre(q) : content.codes ? rowOf(content.codes, row) : points[row].slice(0, names.length));
    state.code = state.z;
    if (isScored) answer();
  }
  // Draws of z for p(z | x given), by weights w = p(x given, z) / r(z). At first r is half q(z | x given) and half p(z), as q of a row
  // with gaps may be elsewhere; or q alone where it is a flow, whose density is known at its own draws only. Where few draws have
  // all weight, more are drawn, of which r is a tenth p(z) and else a Normal near p(z | x given), as `near_posterior` finds it. The
  // generator starts anew for each row, so that an address has one answer.
  function drawsOf(x, row) {
    const given = columns.map((_, d) => d).filter((d) => isKnown(x[d])), generator = xorshift(2463534242), found = {outputs: [], points: [], logs: [], draw, renew};
    let q = encode(x, row), every = q.loc ? 2 : Infinity;
    function draw(count) {
      random = generator;
      try {
        for (const _ of list(count, Number)) drawOne();
      } finally {
        random = unseeded;
      }
    }
    function drawOne() {
      const {z, logQ} = q.at((found.logs.length + 1) % every === 0 ? vae.drawPrior() : q.draw()), outputs = Array.from(vae.decode(z)), each = decoded(outputs), prior = sum(vae.logPrior(z));
      const log = sum(given.map((d) => each[d].logP(x[d]))) + prior - logSumExp([sum(logQ) + Math.log(1 - 1 / every), prior - Math.log(every)]);
      found.logs.push(isKnown(log) ? log : -Infinity);
      found.outputs.push(outputs);
      found.points.push(z);
    }
    function renew() {
      if (vae.isSphere || vae.isBits) return;
      [q, every] = [normalOf(found.points, found.logs), 10];
      Object.assign(found, {outputs: [], points: [], logs: []});
    }
    return found;
  }
  function logP({logs}) { // log p(x given), its error, and the effective sample size
    const total = logSumExp(logs), log = total - Math.log(logs.length);
    return {log, stderr: Math.sqrt(sum(logs.map((one) => Math.expm1(one - log) ** 2))) / logs.length, effective: Math.exp(2 * total - logSumExp(logs.map((one) => 2 * one)))};
  }
  function answerOf({outputs, points, logs}) { // p(x_d | x given) of each column, the mean of z, and draws of z
    const most = Math.max(...logs), kept = logs.map((_, k) => k).filter((k) => logs[k] > most - Math.log(1e5 * logs.length));
    const total = logSumExp(kept.map((k) => logs[k])), weights = kept.map((k) => Math.exp(logs[k] - total)), each = kept.map((k) => decoded(outputs[k]));
    let left = 0, place = 0;
    const cloud = list(40, (i) => { for (; left < (i + 0.5) / 40 && place < kept.length; place++) left += weights[place]; return points[kept[place - 1]]; });
    return {columns: columns.map((one, d) => mixed(one, each.map((parts) => parts[d]), weights)), z: names.map((_, l) => sum(kept.map((k, i) => weights[i] * points[k][l]))), cloud};
  }
  const pause = () => new Promise((done) => setTimeout(done));
  async function scored(draws, who, isStale, follow = () => {}) { // log p by as many draws as it needs; null where the row is another now
    for (let count = DRAWS[who][0], start = performance.now(); ; count *= 2) {
      while (draws.logs.length < count) {
        draws.draw(50);
        if (performance.now() - start > 12) {
          await pause();
          start = performance.now();
        }
        if (isStale()) return null;
      }
      const found = {...logP(draws), isEnough: logP(draws).effective >= ENOUGH[who]};
      follow(found);
      if (found.isEnough || 2 * count > DRAWS[who][1]) return found;
      draws.renew();
    }
  }
  async function answer({x, row, out, set} = state, token = (state.token = {}), isStale = () => state.token !== token) { // the answer, and then log p beside that of others
    const draws = drawsOf(x, row), given = columns.map((_, d) => d).filter((d) => isKnown(x[d])), isOpen = given.length < columns.length || Object.keys(set).length > 0;
    const say = (text) => (find("odd").textContent = given.length ? `log p of what is given (${given.length} value${given.length > 1 ? "s" : ""}): ${text}` : "No value is given.");
    say("\u2026");
    const own = await scored(draws, "own", isStale, (found) => {
      if (!Number.isFinite(found.log)) return say("\u2212\u221e: no draw of z makes these values possible.");
      const {columns, z, cloud} = answerOf(draws), isHere = isAtCode();
      Object.assign(state, {answer: {columns, ...found, draws: draws.logs.length}, ...(isOpen ? {code: vae.isSphere ? unit(z) : z, cloud, isOpen} : {})});
      isHere ? jump(state.code) : move(state.z);
      if (isHere) state.code = state.z;
      say(`${written(found.log)} \u00b1 ${found.stderr.toFixed(2)} nats; beside other rows \u2026`);
    });
    if (own && !Number.isFinite(own.log)) return;
    const others = rows.map((_, i) => i).filter((i) => isTest[i] && i !== row && given.every((d) => isKnown(xOf(d, i)))).slice(0, OTHERS), known = (answer[given] ||= {});
    for (const [done, i] of own ? others.entries() : []) {
      say(`${written(own.log)} \u00b1 ${own.stderr.toFixed(2)} nats; beside other rows: ${done} of ${others.length} \u2026`);
      known[i] ||= await scored(drawsOf(xWith(i, out, {}), i), "other", isStale);
      if (!known[i]) return delete known[i];
    }
    if (!own || !given.length) return say("");
    const odder = others.filter((i) => known[i].log <= own.log).length, few = others.filter((i) => !known[i].isEnough).length, count = `${others.length} other test row${others.length === 1 ? "" : "s"} with these columns`;
    const beside = odder ? `${odder} of ${count} ${odder === 1 ? "is" : "are"} at least as odd` : `odder than all ${count}`, doubt = own.isEnough || !odder ? "" : ` ${draws.logs.length} draws of z are few for it: log p is probably higher.`;
    say(`${written(own.log)} \u00b1 ${own.stderr.toFixed(2)} nats; ${isTest[row] ? `p-value ${((1 + odder) / (1 + others.length)).toFixed(3)}: ` : ""}${beside}${isTest[row] ? "" : "; it is a training row itself"}.` +
      doubt + (few ? ` Of ${few} others log p is probably higher.` : ""));
  }

  // Columns of the file that steps rewrote: `by` which, and `d` of the modelled column that has the name of one, or -1
  function sourceName(name) { // of the column of the file of which a column was made
    const maker = steps.find(({made}) => made.includes(name));
    return maker ? sourceName(maker.column) : name;
  }
  const rewritten = file.map(({name}, place) => ({name, place, d: columns.findIndex((one) => one.name === name),
    by: steps.filter(({column, flags, rule}) => rule !== "levels" && (flags ?? [sourceName(column)]).includes(name))})).filter(({by, d}) => by.length || d < 0);
  const centres = (shown, x = []) => shown.map(({mean, median, share, shares}, d) => {
    if (isKnown(x[d] ?? NaN)) return x[d];
    if (shares) return shares.indexOf(Math.max(...shares));
    return share > 0.5 ? columns[d].atom : median ?? mean;
  });
  const fileTexts = (x) => toFile(content, x).map((value, place) => textOf(file[place], value));

  // The map
  const toMap = (place) => place.map((one, d) => ((1 + ((d ? -1 : 1) * (one - middle[d])) / range) * map.width) / 2);
  const fromEvent = (event) => eventOn(map, event).map((one, d) => middle[d] + range * one);
  const distances = ([u, v]) => points.map(([x, y]) => Math.hypot(x - u, y - v)), nearest = (place, all = distances(place)) => all.indexOf(Math.min(...all));
  const valueOf = (d, i) => (columns[d].levels ? xOf(d, i) : placeOn(columns[d], xOf(d, i)));
  const endsOf = (d) => [columns[d].low, columns[d].high].map((end) => textOf(modelled[d], end));
  const choices = columns.map((one, d) => ({...one, ends: one.levels ? null : endsOf(d), of: (i) => (texts[i][d] ? valueOf(d, i) : -1)})); // -1: missing
  const fileX = rows.map((_, i) => (file.length ? toFile(content, rowOf(content.x, i)) : []));
  for (const {name, place, d} of rewritten) {
    const {categories} = file[place], all = fileX.map((one) => one[place]), seen = all.filter((one) => !Number.isNaN(one)).sort((a, b) => a - b);
    const [low, high] = [0.01, 0.99].map((share) => seen[Math.round(share * (seen.length - 1))] ?? NaN), ends = [low, high].map((one) => textOf(file[place], one));
    const levels = categories.length ? categories : undefined, of = (i) => (Number.isNaN(all[i]) ? -1 : levels ? all[i] : clamp((all[i] - low) / (high - low || 1), 0, 1));
    choices[d < 0 ? choices.length : d] = {name, levels, of, ends};
  }
  if (labels) choices.unshift({name: "label", levels: content.label_names, of: (i) => labels.data[i]});
  const shade = (share) => `oklch(${(isDark.matches ? 0.52 : 0.36) + 0.4 * share} 0.13 ${285 - 175 * share})`;
  function drawMap() {
    const context = still.getContext("2d"), scale = state.sharp || devicePixelRatio || 1, {levels, of} = choices[find("by").value], {isSphere} = vae;
    map.width = map.height = still.width = still.height = Math.round(map.clientWidth * scale);
    if (normals) drawNormals(context, scale);
    points.forEach((place, i, _, k = of(i)) => {
      Object.assign(context, {fillStyle: levels || k < 0 ? colour(k) : shade(k), globalAlpha: isTest[i] ? 1 : 0.55});
      mark(context, levels ? k : 0, toMap(place), (isTest[i] ? 3 : 2) * scale);
      context.fill();
    });
    context.globalAlpha = 1;
    const radii = isSphere ? [1] : normals ? [] : [1, 2, 3].filter((one) => one < range), isPrior = content.prior.top.kind === "normal";
    drawPrior(context, toMap, {scale, line: css("--soft"), radii, isSphere, isPrior, names: dims.map((d) => names[d])});
    drawOverlay();
  }
  function drawNormals(context, scale) {
    Object.assign(context, {strokeStyle: css("--line"), fillStyle: css("--soft"), lineWidth: scale, textAlign: "left", font: `${11 * scale}px system-ui, sans-serif`}).setLineDash([4 * scale, 4 * scale]);
    normals.forEach((one) => path(context, ellipse(one, axes, 1).map(toMap)));
    context.setLineDash([]);
    context.fillText("dashed: the components of p(z), 1 sd", 6 * scale, map.height - 6 * scale);
  }
  function drawOverlay() {
    const context = map.getContext("2d"), scale = state.sharp || devicePixelRatio || 1;
    context.clearRect(0, 0, map.width, map.height);
    context.drawImage(still, 0, 0);
    drawRing(context, toMap(toPlane(state.z)), scale);
    Object.assign(context, {strokeStyle: css("--warm"), fillStyle: css("--warm"), lineWidth: 2 * scale});
    if (state.q && !state.isOpen) [1, 2].forEach((radius) => path(context, ellipse(state.q, axes, radius).map(toMap)));
    state.cloud.forEach((z) => (mark(context, 0, toMap(toPlane(z)), 1.8 * scale), context.fill()));
  }
  map.onpointermove = (event) => move(at(fromEvent(event)));
  map.onpointerleave = ({pointerType}) => pointerType === "mouse" && move(state.rest);
  map.onpointerdown = (event) => {
    const place = fromEvent(event), row = nearest(place);
    distances(place)[row] < (18 / map.clientWidth) * range ? pick(row) : jump(at(place));
  };
  map.onkeydown = (event) => {
    const by = arrowOf(event, range), {key} = event, here = toPlane(state.z);
    if (by) jump(at(here.map((one, d) => clamp(one + by[d], middle[d] - range, middle[d] + range))));
    else if (key === "Enter") pick(nearest(here));
    if (by || key === "Enter") event.preventDefault();
  };

  // The columns
  function said({by}) {
    const all = by.map(({says}) => says).filter(Boolean);
    return `by ${all.length > 1 ? "rules" : "a rule"}: ${all.join("; ")}`;
  }
  const fieldText = (d, value) => { // of a value of x
    const {levels, date, origin, suffix, point} = columns[d], row = eachOnce[d].find(([x]) => x === value);
    if (row) return texts[row[1]][d];
    if (levels) return levels[value];
    return date ? numberText(columns[d], value) : general(origin + value, 12).replace(".", point) + suffix;
  };
  function valueIn(d, text) { // which a person gives, or why it is none
    const {levels, date, origin, suffix, point} = columns[d], row = rows.findIndex((_, i) => texts[i][d] === text);
    if (levels || row >= 0) return levels ? Number(text) : xOf(d, row);
    const value = (date ? Date.parse(text.length > 10 ? `${text}Z` : text) / 864e5 : Number(text.replace(suffix, "").replace(point, ".").replace(",", "."))) - origin;
    return whyNot(d, value) || value;
  }
  function whyNot(d, value) { // a column cannot be this; or ""
    const {levels, kind, origin, atom = 0} = columns[d];
    if (!eachOnce[d].length) return "No row that is shown has a value of this column";
    if (levels) return eachOnce[d].some(([one]) => one === value) ? "" : "Choose a level";
    if (!(Math.abs(value) < 1e15)) return `Give a number, such as ${fieldText(d, eachOnce[d][0][0])}`;
    if (modelled[d].decimals === 0 && !Number.isInteger(origin + value)) return "Give a whole number";
    if (kind === "positive" && value <= 0) return "Give a number above 0";
    return ["count", "zero-inflated"].includes(kind) && value < atom ? `Give ${fieldText(d, atom)} or more` : "";
  }
  const items = columns.map(({name, levels, date = 0}, d) => {
    const rest = () => state.out.filter((one) => one !== d);
    const unset = () => Object.fromEntries(Object.entries(state.set).filter(([one]) => Number(one) !== d));
    function change({target}) {
      const text = target.value.trim(), value = text ? valueIn(d, text) : null;
      target.setCustomValidity(typeof value === "string" ? value : "");
      if (target.reportValidity()) pick(state.row, rest(), value === null ? unset() : {...unset(), [d]: value});
    }
    const set = element(levels ? "select" : "input", {className: "take", ariaLabel: `set ${name} to`, onchange: change});
    if (levels) set.append(element("option", {value: "", textContent: "set to"}), ...eachOnce[d].map(([value]) => element("option", {value, textContent: levels[value]})));
    else Object.assign(set, {type: date > 10 ? "datetime-local" : date ? "date" : "text", placeholder: "set to", size: 7});
    const box = element("input", {type: "checkbox", ariaLabel: `take out ${name}`, onchange: ({target}) => pick(state.row, target.checked ? [...rest(), d] : rest(), unset())});
    const parts = {output: element("span", {className: "number"}), shown: element("div", {className: "levels", role: "group", ariaLabel: `${name} given z`, tabIndex: levels?.length > 8 ? 0 : -1}), beside: element("span", {className: "soft"}), box, set};
    const take = element("label", {className: "soft take"}, box, "take out"), source = rewritten.find((one) => one.name === sourceName(name)), here = element("b");
    const lines = source?.d === d && source.by.some(({says}) => says) ? [element("p", {className: "soft by-rule"}, said(source), element("span", {}, "here: ", here))] : [];
    find("columns").append(element("li", {}, element("div", {className: "row spread"}, element("h3", {textContent: name}), parts.output), ...lines, parts.shown, parts.beside,
      element("div", {className: "row spread"}, take, set)));
    return {...parts, here, source};
  });
  const cards = rewritten.filter(({d}) => d < 0).map((one) => {
    const parts = {...one, value: element("span", {className: "number"}), own: element("p", {className: "own"})};
    find("columns").append(element("li", {className: "computed"}, element("div", {className: "row spread"}, element("h3", {textContent: one.name}), parts.value),
      element("p", {className: "soft by-rule", textContent: said(one)}), parts.own));
    return parts;
  });
  function drawFile(texts) { // of each column of the file
    for (const {here, source} of items) if (source) here.textContent = texts[source.place] || "empty";
    for (const {value, own, place} of cards) {
      value.textContent = texts[place] || "empty";
      own.textContent = `row: ${content.file_texts[state.row][place] || "empty"}`;
    }
  }
  function absent(d, row) { // why a row has no value of a column
    const {source} = items[d], {by, name} = source || {by: []}, text = source ? content.file_texts[row][source.place] : "";
    if (text) return source.d === d ? `${text}, by a rule` : `none (${name} is ${text})`;
    if (by.some(({rule, made: [one]}) => rule === "empty" && one === columns[d].name)) return "by a rule";
    if (by.some(({rule}) => rule === "empty")) return "empty";
    return "missing";
  }
  const level = (share, textContent, isOwn) => element("div", {className: "level", style: `--share: ${share}`},
    element("span", {textContent, className: isOwn ? "own" : ""}), element("i"), element("span", {textContent: `${(100 * share).toFixed(0)} %`}));
  function expectedOf(d, {mean, sd, median, ends, share, shares}) { // in words
    const column = columns[d], number = (one) => numberText(column, one);
    if (shares) {
      const most = shares.indexOf(Math.max(...shares));
      return `${column.levels[most]}, ${(100 * shares[most]).toFixed(0)} %`;
    }
    const start = share === undefined ? "" : "else ", unit = column.date ? " days" : "";
    if (ends) return `${start}${number(median)} (${ends.map(number).join(" to ")})`;
    return `${start}${number(mean)} \u00b1 ${sd === null ? "infinite" : numberText({...column, date: 0, origin: 0}, sd) + unit}`;
  }
  function besideText(d, text, isValue, {mean, ends}, expected) { // the line below a column
    const row = texts[state.row][d], own = `row: ${row || absent(d, state.row)}`, isSet = d in state.set;
    const isBeyond = isSet && !columns[d].levels && (state.set[d] < eachOnce[d][0][0] || state.set[d] > eachOnce[d].at(-1)[0]);
    if (isValue) return `${isSet ? `set${isBeyond ? ", beyond all rows" : ""}; ${own}; ` : ""}expected: ${expected}`;
    if (isSet || text) return isSet ? `set to ${text}` : own;
    const isAnswer = state.answer && isAtCode(), few = isAnswer && !state.answer.isEnough ? "; by few draws, so it may be wrong" : "";
    return `${row ? "taken out; " : ""}${own}${isAnswer && ends ? `; mean ${numberText(columns[d], mean)}` : ""}${few}`;
  }
  function drawColumn(found, d) {
    const {output, shown, beside, box, set} = items[d], column = columns[d], {mean, sd, median, ends, share, shares} = found, isSet = d in state.set;
    const x = state.x[d], isGiven = isKnown(x), text = isGiven ? fieldText(d, x) : "", isValue = isGiven && isAtCode(), place = (one) => placeOn(column, one), expected = expectedOf(d, found);
    Object.assign(box, {checked: !isGiven, disabled: !texts[state.row][d] && !isSet});
    if (!isSet) set.value = "";
    else if (document.activeElement !== set) set.value = column.levels ? x : column.date ? text.replace(" ", "T") : text;
    Object.assign(output, {textContent: isValue ? text : expected, className: isValue ? "number own" : "number"});
    beside.textContent = besideText(d, text, isValue, found, expected);
    if (shares) return shown.replaceChildren(...shares.map((one, k) => level(one, column.levels[k], k === x)));
    const [from, to] = (ends || [mean - sd, mean + sd]).map(place), style = `--from: ${from}; --to: ${to}; --mean: ${place(ends ? median : mean)}; --value: ${isGiven ? place(x) : -1}`;
    shown.replaceChildren(...(share === undefined ? [] : [level(share, numberText(column, column.atom), isGiven && place(x) <= place(column.atom))]),
      element("div", {className: "range", style}, ...["deviation", "mean", "value"].map((className) => element("i", {className}))),
      element("p", {className: "soft row spread"}, ...endsOf(d).map((textContent) => element("span", {textContent}))));
  }

  // The address: a row, which columns are out or set, z if it is another than theirs, colours, and the step of the story
  function remember() {
    const {row, out, set, z, code, q} = state, pairs = Object.entries(set).map((one) => one.join(":")); // x without its origin
    writeAddress({row, out: out.join() || null, set: pairs.join() || null, z: z === code && (isScored || !q || q.loc) ? null : z.map((one) => Number(one.toFixed(3))),
      by: find("by").value, step: tellStory.number || null});
  }
  function recall() {
    const hash = new URLSearchParams(location.hash.slice(1)), number = (name) => Number(hash.get(name) ?? NaN);
    const parts = (name, isPart) => (hash.get(name) ?? "").split(",").filter((one) => isPart.test(one));
    const set = Object.fromEntries(parts("set", /^\d+:[-\d.e]+$/).map((one) => one.split(":").map(Number)).filter(([d, x]) => d in columns && !whyNot(d, x)));
    const out = [...new Set(parts("out", /^\d+$/).map(Number))].filter((d) => d in columns && !(d in set));
    pick(number("row") in rows ? number("row") : 0, ...(takesOut ? [out, set] : []));
    const z = parts("z", /./).map(Number);
    if (z.length === names.length && z.every(Number.isFinite)) jump(z);
    if (number("by") in choices) find("by").value = number("by");
    drawLegend();
    tellStory(number("step") - 1 in told ? number("step") : 0);
  }
  const told = [...document.querySelectorAll("#story li")].filter(({className}) => ({encodes: vae.canEncode, take: takesOut, scored: isScored})[className] ?? true);
  const tellStory = setUpStory(told, remember);

  // The rest of the page
  function drawHere() {
    state.frame = 0;
    remember();
    drawOverlay();
    const isAnswer = state.answer && isAtCode(), shown = isAnswer ? state.answer.columns : decoded();
    shown.forEach(drawColumn);
    if (steps.length) drawFile(fileTexts(centres(shown, isAtCode() ? state.x : [])));
    find("answer").textContent = !isAnswer || !state.isOpen ? "" : `Of ${state.answer.draws.toLocaleString("en")} draws of z, weighted; effective sample size ${state.answer.effective.toFixed(0)}${state.answer.isEnough ? "." : ": too few to trust the errors."}`;
    find("sliders").querySelectorAll("input").forEach((one) => one.follow());
    const place = (find("position").textContent = toPlane(state.z).slice(0, dims.length).map((one, i) => `${names[dims[i]]} = ${written(one)}`).join(", "));
    later("spoken", isAtCode() ? `${rows[state.row]}: ${place}` : place, 500); // a screen reader hears where the pointer rests
  }
  function drawLegend() {
    const by = choices[find("by").value], {levels, ends} = by;
    const sign = (k) => element("span", {textContent: "\u25cf\u25a0\u25b2"[shape(k)], ariaHidden: true, style: `color: ${colour(k)}`});
    const shades = element("span", {className: "shades", style: `background: linear-gradient(to right, ${list(9, (i) => shade(i / 8))})`});
    find("legend").replaceChildren(...(levels ? levels.map((name, k) => element("span", {}, sign(k), name)) : [ends[0], shades, ends[1]]));
    drawMap();
  }
  const options = (id, texts) => find(id).append(...texts.map((textContent, value) => element("option", {textContent, value})));
  options("by", choices.map(({name}) => name));
  find("rows").append(...[...rows].sort(new Intl.Collator("en", {numeric: true}).compare).map((value) => element("option", {value})));
  isDark.onchange = drawLegend;
  find("by").onchange = () => (drawLegend(), remember());
  find("save-map").onclick = () => { // three times as sharp, with the legend below
    const {levels, ends, name} = choices[find("by").value], step = 22 * (state.sharp = 3 * (devicePixelRatio || 1)), ink = css("--ink");
    const marks = levels ? levels.map((text, k) => [text, colour(k), k]) : ends.map((text, k) => [text, shade(k), 0]);
    drawMap();
    save(map, `${content.title[0]} map.png`, step * (1.5 + Math.ceil(marks.length / 3)), (context, top) => {
      Object.assign(context, {font: `${0.6 * step}px system-ui, sans-serif`, fillStyle: ink}).fillText(name, step / 4, top + step);
      marks.forEach(([text, fillStyle, k], i) => {
        const x = step / 2 + ((i % 3) * map.width) / 3, y = top + step * (2 + Math.floor(i / 3));
        mark(Object.assign(context, {fillStyle}), k, [x, y - step / 5], step / 4);
        context.fill();
        Object.assign(context, {fillStyle: ink}).fillText(text, x + step / 2, y);
      });
    });
    state.sharp = 0;
    drawMap();
  };
  find("row").onchange = ({target}) => {
    target.setCustomValidity(rows.includes(target.value) ? "" : "No row has this name");
    if (target.reportValidity()) pick(rows.indexOf(target.value));
  };
  const byRate = content.rates.length ? content.active.toSorted((a, b) => content.rates[b] - content.rates[a]) : content.active, isUsed = (d) => !content.rates.length || content.rates[d] > 0.01;
  const sliderOf = (d) => slider(content.rates.length ? `${names[d]}, ${content.rates[d].toFixed(2)} nats` : names[d], vae.isSphere ? 1 : Math.ceil(Math.max(3, range)), () => state.z[d], (value) => jump(state.z.with(d, value)));
  find("sliders").append(...byRate.filter(isUsed).map(sliderOf));
  const unused = byRate.filter((d) => !isUsed(d));
  if (unused.length) find("sliders").append(element("details", {className: "soft"}, element("summary", {textContent: `${unused.length} latents that say nothing about x`}), ...unused.map(sliderOf)));
  document.body.classList.add(vae.hasDensity ? "is-vae" : "is-autoencoder", vae.canEncode ? "is-encoder" : "is-decoder", isScored ? "is-scored" : "is-not-scored", steps.length ? "is-ruled" : "is-plain", takesOut ? "takes-out" : "keeps");
  find("rules").hidden = !rules.length;
  find("rules").open = rules.length <= 6;
  find("rules").querySelector("summary").append(`What holds in all rows: ${rules.length} rule${rules.length > 1 ? "s" : ""}`);
  find("rules").querySelector("ul").append(...rules.map((textContent) => element("li", {textContent})));
  find("learned").append(...content.learned.map((line) => element("li", {textContent: line.replaceAll("+-", "\u00b1")})));
  introduce(content, "Each dot is a row; move over the map to see what the columns are likely to be there.");
  (recall(), (window.onhashchange = recall));
  new ResizeObserver(() => Math.abs(map.width - map.clientWidth * devicePixelRatio) > 1 && drawMap()).observe(map);
  window.pvae = {content, vae, state, decoded, centres, fileTexts, pick, logP, drawsOf, answerOf, xWith, xOf, tellStory, view: {middle, range}};
}
start(show);

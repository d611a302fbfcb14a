// The page of a table: the map of the codes of its rows, sliders of z, and p(x_d | z) of each column d.
"use strict";

const MOST_SCORED = 200, DRAWS = 100; // rows beside which a row is odd, and draws of z for the log p of each

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
// deviation; of skewed values the median and the ends of the central 68 %, as far as the mean of a Normal +- its standard
// deviation; or probabilities.
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
    return {median, ends: [low, high], logP: (x) => logInSteps(column, mean, sd, x, NORMAL, logAbove0, -logAbove0(x))};
  },
  "zero-inflated"(column, outputs, {logP, ...rest} = COLUMNS.positive(column, outputs)) {
    const {atom, step} = column, logit = column.log_odds + outputs[2], isAtom = (x) => Math.abs(x - atom) <= Math.max(1.2e-7 * Math.abs(atom), step / 2);
    const logAtom = logSumExp([-softplus(-logit), step ? logP(0) + Math.log(step) - softplus(logit) : -Infinity]); // with what rounds to it, as `WithAtom`
    return {...rest, share: Math.exp(logAtom), logP: (x) => (isAtom(x) ? logAtom - Math.log(step || 1) : logP(x - atom) - softplus(logit))};
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
function placeOn({is_log: isLog, low, high}, value, on = isLog ? Math.log : Number) { // 0 and 1 at the ends of its bar
  return clamp((on(value) - on(low)) / (on(high) - on(low)), 0, 1);
}
function numberText({date, decimals, origin, suffix, point}, value) {
  if (date) return new Date(864e5 * (origin + value)).toISOString().slice(0, date).replace("T", " ");
  return (origin + value).toFixed(decimals).replace(".", point).replace("-", "\u2212") + suffix;
}

async function show() {
  const content = await unpack(find("content").textContent), {columns, rows, texts, labels, rules, file, planes: [{axes, dims}]} = content;
  const vae = vaeOf(content), isScored = vae.canEncode && vae.hasPrior, names = content.names.map(subscript), map = find("map"), still = element("canvas"), state = {z: names.map(() => 0), q: null, cloud: [], out: [], set: {}};
  const rowOf = ({shape: [, width], data}, i) => Array.from(data.subarray(i * width, (i + 1) * width));
  const points = rows.map((_, i) => rowOf(content.points, i).slice(0, 2));
  const normals = vae.normals && vae.normals.filter(({log}) => log > -Math.log(10 * vae.normals.length)); // of a prior that is a mixture
  const {middle, range} = viewOf([points, ...(normals || []).map((one) => ellipse(one, axes, 2))], vae);

  // z, and a row with columns that are taken out, or set to the values of other rows
  const toPlane = (z) => onPlane(axes, z), at = (place) => zAt(place, axes, state.z, vae.isSphere, state);
  const move = (z) => (Object.assign(state, {z}).frame ||= requestAnimationFrame(drawHere));
  const jump = (z) => (move(vae.isSphere ? unit(z) : z), (state.rest = state.z)); // it stays there when the pointer has left the map
  const decoded = (outputs = Array.from(vae.decode(state.z))) => columns.map((one) => COLUMNS[one.kind](one, one.outputs.map((place) => outputs[place])));
  const xOf = (d, row) => content.x.data[row * columns.length + d];
  function encode(row, out, set) {
    const x = rowOf(content.features, row);
    out.forEach((d) => columns[d].inputs.forEach((feature) => (x[feature] = 0)));
    for (const [d, other] of Object.entries(set)) columns[d].inputs.forEach((feature) => (x[feature] = rowOf(content.features, other)[feature]));
    return vae.posterior(Float32Array.from(x));
  }
  function pick(row, out = [], set = {}) {
    const q = vae.canEncode ? encode(row, out, set) : null;
    Object.assign(state, {row, out, set, q, cloud: q ? cloudOf(q, vae) : []});
    find("row").value = row;
    jump(q ? centre(q) : content.codes ? rowOf(content.codes, row) : points[row].slice(0, names.length));
    state.code = state.z;
    if (isScored) drawOdd();
  }
  // log p of the values in some columns of a row, by importance sampling: half of the draws of z are from p(z), as q given few
  // values may be too narrow, and the weights are p(x, z) / (q / 2 + p / 2); of a flow, whose density is known at its own draws
  // only, p(x, z) / q. Where the effective sample size is below 10, the page says so; no row is left out.
  function logP(given, row, set = {}, draws = DRAWS) {
    const q = encode(row, columns.map((_, d) => d).filter((d) => !given.includes(d)), set);
    const logs = list(draws, (i) => {
      const {z, logQ} = q.at(q.loc && i % 2 ? vae.drawPrior() : q.draw()), each = decoded(Array.from(vae.decode(z)));
      const prior = sum(vae.logPrior(z)), proposal = q.loc ? logSumExp([sum(logQ), prior]) - Math.log(2) : sum(logQ);
      return sum(given.map((d) => each[d].logP(xOf(d, set[d] ?? row)))) + prior - proposal;
    }), total = logSumExp(logs), log = total - Math.log(draws);
    const stderr = Math.sqrt(sum(logs.map((one) => Math.expm1(one - log) ** 2))) / draws;
    return {log, stderr, isTrusted: 2 * total - logSumExp(logs.map((one) => 2 * one)) >= Math.log(10)};
  }
  async function drawOdd({row, out, set} = state, token = (state.odd = {})) { // beside other rows, by the same columns
    const has = (one, d) => !Number.isNaN(xOf(d, one)), given = columns.map((_, d) => d).filter((d) => !out.includes(d) && has(set[d] ?? row, d));
    const others = rows.map((_, i) => i).filter((i) => i !== row && given.every((d) => has(i, d))).slice(0, MOST_SCORED), known = (drawOdd[given] ||= {});
    const say = (text) => (find("odd").textContent = given.length ? `log p of what is given (${given.length} value${given.length > 1 ? "s" : ""}): ${text}` : "No value is given.");
    say("\u2026");
    if (!given.length) return;
    for (let k = 0, start = 0; k < others.length; k++) {
      if (performance.now() - start > 12) (await new Promise((done) => setTimeout(done)), (start = performance.now()));
      if (state.odd !== token) return; // another row, or other columns
      known[others[k]] ||= logP(given, others[k]);
    }
    const own = logP(given, row, set), beside = others.map((i) => known[i]), odder = beside.filter(({log}) => log <= own.log).length;
    const few = beside.filter(({isTrusted}) => !isTrusted).length, low = [...(own.isTrusted ? [] : ["this row"]), ...(few ? [`${few} others`] : [])];
    say(`${written(own.log)} \u00b1 ${own.stderr.toFixed(2)} nats; p-value ${((1 + odder) / (1 + beside.length)).toFixed(3)}: ${odder} of ${beside.length} other rows with these columns are at least as odd.` +
      (low.length ? ` ${DRAWS} draws of z are too few for ${low.join(" and ")}: log p is probably higher.` : ""));
  }

  // Columns of the file that rules rewrite: `by` which, and `d` of the modelled column that has the name of one, or -1
  function sourceName(name) { // of the column of the file of which a column was made
    const maker = rules.find(({made}) => made.includes(name));
    return maker ? sourceName(maker.column) : name;
  }
  const rewritten = file.map(({name}, place) => ({name, place, d: columns.findIndex((one) => one.name === name),
    by: rules.filter(({column, rule}) => sourceName(column) === name && rule !== "levels")})).filter(({by, d}) => by.length || d < 0);
  const centres = (shown) => shown.map(({mean, median, share, shares}, d) => shares ? shares.indexOf(Math.max(...shares)) : share > 0.5 ? columns[d].atom : median ?? mean);
  const fileTexts = (x) => recorded(content, x).map((value, place) => textOf(file[place], value));

  // The map
  const toMap = (place) => place.map((one, d) => ((1 + ((d ? -1 : 1) * (one - middle[d])) / range) * map.width) / 2);
  const fromEvent = (event) => eventOn(map, event).map((one, d) => middle[d] + range * one);
  const distances = ([u, v]) => points.map(([x, y]) => Math.hypot(x - u, y - v)), nearest = (place, all = distances(place)) => all.indexOf(Math.min(...all));
  const valueOf = (d, i) => (columns[d].levels ? xOf(d, i) : placeOn(columns[d], xOf(d, i)));
  const choices = columns.map((one, d) => ({...one, of: (i) => (texts[i][d] ? valueOf(d, i) : -1)})); // -1: missing
  const fileX = rows.map((_, i) => (file.length ? recorded(content, rowOf(content.x, i)) : []));
  for (const {name, place, d} of rewritten) {
    const {categories} = file[place], all = fileX.map((one) => one[place]), seen = all.filter((one) => !Number.isNaN(one)).sort((a, b) => a - b);
    const [low, high] = [0.01, 0.99].map((share) => seen[Math.round(share * (seen.length - 1))] ?? NaN), ends = [low, high].map((one) => textOf(file[place], one));
    const levels = categories.length ? categories : undefined, of = (i) => (Number.isNaN(all[i]) ? -1 : levels ? all[i] : clamp((all[i] - low) / (high - low || 1), 0, 1));
    choices[d < 0 ? choices.length : d] = {name, levels, of, ends};
  }
  if (labels) choices.unshift({name: "label", levels: content.label_names, of: (i) => labels.data[i]});
  const shade = (share) => `oklch(${(isDark.matches ? 0.52 : 0.36) + 0.4 * share} 0.13 ${285 - 175 * share})`;
  function drawMap() {
    const context = still.getContext("2d"), scale = devicePixelRatio || 1, {levels, of} = choices[find("by").value], {isSphere} = vae;
    map.width = map.height = still.width = still.height = Math.round(map.clientWidth * scale);
    points.forEach((place, i, _, k = of(i)) => {
      context.fillStyle = levels || k < 0 ? colour(k) : shade(k);
      mark(context, levels ? k : 0, toMap(place), 2.6 * scale);
      context.fill();
    });
    const radii = isSphere ? [1] : normals ? [] : [1, 2, 3].filter((one) => one < range), isPrior = content.prior.top.kind === "normal";
    drawPrior(context, toMap, {scale, line: css("--soft"), radii, isSphere, isPrior, names: dims.map((d) => names[d])});
    if (normals) drawNormals(context, scale);
    drawOverlay();
  }
  function drawNormals(context, scale) {
    context.setLineDash([4 * scale, 4 * scale]);
    normals.forEach((one) => path(context, ellipse(one, axes, 1).map(toMap)));
    context.setLineDash([]);
    Object.assign(context, {textAlign: "left"}).fillText("dashed: the components of p(z), 1 sd", 6 * scale, map.height - 6 * scale);
  }
  function drawOverlay() {
    const context = map.getContext("2d"), scale = devicePixelRatio || 1;
    context.clearRect(0, 0, map.width, map.height);
    context.drawImage(still, 0, 0);
    drawRing(context, toMap(toPlane(state.z)), scale);
    Object.assign(context, {strokeStyle: css("--warm"), fillStyle: css("--warm"), lineWidth: 2 * scale});
    if (state.q) [1, 2].forEach((radius) => path(context, ellipse(state.q, axes, radius).map(toMap)));
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
  const said = ({by}) => `by ${by.length > 1 ? "rules" : "a rule"}: ${by.map(({says}) => says).join("; ")}`;
  const items = columns.map(({name, levels = []}, d) => {
    const rest = () => state.out.filter((one) => one !== d);
    const unset = () => Object.fromEntries(Object.entries(state.set).filter(([one]) => Number(one) !== d));
    const change = ({target}) => pick(state.row, target.checked ? [...rest(), d] : rest(), unset());
    const set = element("select", {className: "take", ariaLabel: `set ${name} to`, onchange: ({target: {value}}) =>
      pick(state.row, rest(), value ? {...unset(), [d]: Number(value)} : unset())}, element("option", {value: "", textContent: "set to"}));
    const known = new Map(rows.map((_, i) => [texts[i][d], i]).filter(([text]) => text)); // each value once
    set.append(...[...known].sort(([, one], [, other]) => xOf(d, one) - xOf(d, other)).map(([textContent, value]) => element("option", {value, textContent})));
    const box = element("input", {type: "checkbox", ariaLabel: `take out ${name}`, onchange: change});
    const parts = {output: element("span", {className: "number"}), shown: element("div", {className: "levels", role: "group", ariaLabel: `${name} given z`, tabIndex: levels.length > 8 ? 0 : -1}), own: element("span", {className: "own"}), box, set};
    const take = element("label", {className: "soft take"}, box, "take out"), source = rewritten.find((one) => one.name === sourceName(name)), here = element("b");
    const lines = source?.d === d ? [element("p", {className: "soft by-rule"}, said(source), element("span", {}, "here: ", here))] : [];
    find("columns").append(element("li", {}, element("div", {className: "row spread"}, element("h3", {textContent: name}), parts.output), ...lines, parts.shown,
      element("div", {className: "row spread"}, parts.own, take, set)));
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
    return state.z === state.code ? "missing, imputed here" : "missing";
  }
  const level = (share, textContent, isOwn) => element("div", {className: "level", style: `--share: ${share}`},
    element("span", {textContent, className: isOwn ? "own" : ""}), element("i"), element("span", {textContent: `${(100 * share).toFixed(0)} %`}));
  function drawColumn({mean, sd, median, ends, share, shares}, d) {
    const {output, shown, own, box, set, source} = items[d], column = columns[d], row = state.set[d] ?? state.row, text = texts[row][d], value = valueOf(d, row), isSet = d in state.set;
    Object.assign(box, {checked: !text || state.out.includes(d), disabled: !texts[state.row][d] && !isSet});
    set.value = isSet ? state.set[d] : "";
    const given = isSet ? `set to: ${text}` : `row: ${text || absent(d, row)}`;
    own.textContent = given + (text && !isSet && box.checked && state.z === state.code ? ", imputed here" : "");
    if (shares) return shown.replaceChildren(...shares.map((one, k) => level(one, column.levels[k], k === value)));
    const place = (one) => placeOn(column, one), [from, to] = (ends || [mean - sd, mean + sd]).map(place);
    const style = `--from: ${from}; --to: ${to}; --mean: ${place(ends ? median : mean)}; --value: ${text ? value : -1}`;
    const number = (one) => numberText(column, one), range = () => `${number(median)} (${ends.map(number).join(" to ")})`;
    const spread = () => (sd === null ? "infinite" : numberText({...column, date: 0, origin: 0}, sd) + (column.date ? " days" : ""));
    output.textContent = (share !== undefined || source?.d === d ? "else " : "") + (ends ? range() : `${number(mean)} \u00b1 ${spread()}`);
    shown.replaceChildren(...(share === undefined ? [] : [level(share, number(column.atom), value <= place(column.atom))]),
      element("div", {className: "range", style}, ...["deviation", "mean", "value"].map((className) => element("i", {className}))),
      element("p", {className: "soft row spread"}, ...[column.low, column.high].map((end) => element("span", {textContent: number(end)}))));
  }

  // The address: a row, which columns are out or set, z if it is another than theirs, colours, and the step of the story
  function remember() {
    const {row, out, set, z, code, q} = state, pairs = Object.entries(set).map((one) => one.join(":"));
    writeAddress({row, out: out.join() || null, set: pairs.join() || null, z: z === code && (!q || q.loc) ? null : z.map((one) => Number(one.toFixed(3))),
      by: find("by").value, step: tellStory.number || null});
  }
  function recall() {
    const hash = new URLSearchParams(location.hash.slice(1)), number = (name) => Number(hash.get(name) ?? NaN);
    const parts = (name, isPart) => (hash.get(name) ?? "").split(",").filter((one) => isPart.test(one));
    const set = Object.fromEntries(parts("set", /^\d+:\d+$/).map((one) => one.split(":").map(Number)).filter(([d, i]) => d in columns && i in rows));
    const out = [...new Set(parts("out", /^\d+$/).map(Number))].filter((d) => d in columns && !(d in set));
    pick(number("row") in rows ? number("row") : 0, ...(content.takes_out ? [out, set] : []));
    const z = parts("z", /./).map(Number);
    if (z.length === names.length && z.every(Number.isFinite)) jump(z);
    if (number("by") in choices) find("by").value = number("by");
    drawLegend();
    tellStory(number("step") - 1 in told ? number("step") : 0);
  }
  const told = [...document.querySelectorAll("#story li")].filter(({className}) => ({encodes: vae.canEncode, take: content.takes_out, scored: isScored})[className] ?? true);
  const tellStory = setUpStory(told, remember);

  // The rest of the page
  function drawHere() {
    state.frame = 0;
    remember();
    drawOverlay();
    const shown = decoded();
    shown.forEach(drawColumn);
    if (rules.length) drawFile(fileTexts(centres(shown)));
    find("sliders").querySelectorAll("input").forEach((one) => one.follow());
    const place = (find("position").textContent = toPlane(state.z).slice(0, dims.length).map((one, i) => `${names[dims[i]]} = ${written(one)}`).join(", "));
    later("spoken", state.z === state.code ? `${rows[state.row]}: ${place}` : place, 500); // a screen reader hears where the pointer rests
  }
  function drawLegend() {
    const by = choices[find("by").value], {levels, low, high, ends = [low, high].map((one) => numberText(by, one))} = by;
    const sign = (k) => element("span", {textContent: "\u25cf\u25a0\u25b2"[shape(k)], ariaHidden: true, style: `color: ${colour(k)}`});
    const shades = element("span", {className: "shades", style: `background: linear-gradient(to right, ${list(9, (i) => shade(i / 8))})`});
    find("legend").replaceChildren(...(levels ? levels.map((name, k) => element("span", {}, sign(k), name)) : [ends[0], shades, ends[1]]));
    drawMap();
  }
  const options = (id, texts) => find(id).append(...texts.map((textContent, value) => element("option", {textContent, value})));
  options("by", choices.map(({name}) => name));
  options("row", rows);
  isDark.onchange = drawLegend;
  find("by").onchange = () => (drawLegend(), remember());
  find("save-map").onclick = () => save(map, `${content.title[0]} map.png`);
  find("row").onchange = ({target}) => pick(Number(target.value));
  find("sliders").append(...content.active.slice(0, 10).sort((a, b) => a - b).map((d) =>
    slider(names[d], vae.isSphere ? 1 : Math.ceil(Math.max(3, range)), () => state.z[d], (value) => jump(state.z.with(d, value)))));
  document.body.classList.add(vae.hasDensity ? "is-vae" : "is-autoencoder", vae.canEncode ? "is-encoder" : "is-decoder", isScored ? "is-scored" : "is-not-scored", rules.length ? "is-ruled" : "is-plain");
  find("rules").hidden = !rules.length;
  find("rules").open = rules.length <= 6;
  find("rules").querySelector("summary").append(`What holds in all rows: ${rules.length} rule${rules.length > 1 ? "s" : ""}`);
  find("rules").querySelector("ul").append(...rules.map(({says}) => element("li", {textContent: says})));
  introduce(content, "Each dot is a row of the test data; move over the map to see what the columns are likely to be there.");
  (recall(), (window.onhashchange = recall));
  new ResizeObserver(() => Math.abs(map.width - map.clientWidth * devicePixelRatio) > 1 && drawMap()).observe(map);
  window.pvae = {content, vae, state, decoded, centres, fileTexts, pick, logP, xOf, tellStory, view: {middle, range}};
}
start(show);

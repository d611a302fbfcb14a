// What the pages of images and of tables share: colours, elements, and shapes on a map.
"use strict";

const COLOURS = { // light: PALETTE of pvae.plotting.figures; circles, squares and triangles for more than ten
  light: ["#246FB3", "#C38200", "#037654", "#FF926B", "#4CBFF9", "#CE7BA7", "#7E1D0E", "#E2D524", "#272388", "#010100"],
  dark: ["#08A8F2", "#D08C02", "#5CE893", "#AC4613", "#C9EFE1", "#B56EA2", "#BA6966", "#F1E641", "#5851CB", "#C4D2FD"],
};
const isDark = matchMedia("(prefers-color-scheme: dark)");
const find = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const press = (buttons, chosen) => [...buttons].forEach((one, i) => one.setAttribute("aria-pressed", i === chosen));
const element = (tag, properties, ...children) => {
  const one = Object.assign(document.createElement(tag), properties);
  one.append(...children);
  return one;
};
const subscript = (name) => name.replace(/_(\d+)$/, (_, digits) => digits.replace(/\d/g, (d) => "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089"[d]));
const written = (number) => (Math.abs(number) < 0.005 ? 0 : number).toFixed(2).replace("-", "\u2212");
const niceStep = (size, unit = 10 ** Math.floor(Math.log10(size || 1))) => unit * [1, 2, 5, 10].find((one) => one * unit >= (size || 1));
const later = (id, text, wait) => (clearTimeout(later[id]), (later[id] = setTimeout(() => (find(id).textContent = text), wait)));
function slider(label, most, value, change, isBit = false) {
  const input = element("input", {type: "range", min: isBit ? 0 : -most, max: most, step: isBit ? 1 : most / 100, value: value(), ariaLabel: label});
  const output = element("output"), say = (number) => (output.textContent = isBit ? Math.round(number) : written(number));
  (input.follow = () => say((input.value = value())))();
  input.oninput = () => (say(Number(input.value)), change(Number(input.value)));
  return element("div", {className: "slider"}, element("span", {textContent: label, title: label}), input, output);
}

const shape = (k) => Math.floor(Math.max(0, k) / 10) % 3; // k is -1 where the class is not known
const colour = (k) => (k < 0 ? css("--soft") : COLOURS[isDark.matches ? "dark" : "light"][k % 10]);
function mark(context, k, [x, y], r) {
  context.beginPath();
  if (shape(k) === 0) context.arc(x, y, r, 0, 7);
  else if (shape(k) === 1) context.rect(x - r, y - r, 2 * r, 2 * r);
  else [[0, -1.3], [1.2, 0.9], [-1.2, 0.9]].forEach(([dx, dy]) => context.lineTo(x + r * dx, y + r * dy));
  context.closePath();
}
const onPlane = (axes, z) => axes.map((axis) => dot(axis, z));
const offPlane = ([a, b], z, u = dot(a, z), v = dot(b, z)) => z.map((one, i) => one - u * a[i] - v * b[i]);
function across(axes, z, state) { // the direction of the other coordinates on a sphere; where they are 0, the one before, or any
  const choices = [z, state.across || z, ...z.map((_, d) => z.map((_, i) => Number(i === d)))].map((one) => offPlane(axes, one));
  return (state.across = unit(choices.find((one) => Math.hypot(...one) > 1e-6) || z.map(() => 0)));
}
function zAt([u, v], axes, z, isSphere, state) { // z moved to a place on the map: on a sphere, the other coordinates shrink or grow
  const left = Math.sqrt(Math.max(0, 1 - u * u - v * v)), others = isSphere ? across(axes, z, state).map((one) => left * one) : offPlane(axes, z);
  const found = others.map((one, i) => u * axes[0][i] + v * axes[1][i] + one);
  return !isSphere ? found : Math.hypot(...found) > 1e-6 ? unit(found) : z;
}
const circle = (radius) => list(91, (i) => [Math.cos, Math.sin].map((f) => radius * f((i * Math.PI) / 45)));
const centre = (q) => (q.logits ? q.loc.map(Math.round) : q.central ? q.central() : q.loc || q.at(q.draw()).z);
const cloudOf = (q, {hasDensity}) => (q.scale || q.tril || q.top || !hasDensity ? [] : list(40, () => q.at(q.draw()).z)); // where there is no ellipse
function ellipse(q, axes, radius) { // of a Normal, projected on the plane; by the Cholesky factor of its covariance
  const {loc, scale, tril} = q.top || q;
  if (!scale && !tril) return [];
  const [a, b] = axes.map((axis) => loc.map((_, j) => (tril ? dot(axis, tril.map((row) => row[j])) : axis[j] * scale[j])));
  const first = Math.hypot(...a) || 1e-12, other = dot(a, b) / first, rest = Math.sqrt(Math.max(0, dot(b, b) - other ** 2));
  const [u, v] = axes.map((axis) => dot(axis, loc));
  return circle(radius).map(([c, s]) => [u + first * c, v + other * c + rest * s]);
}
function path(context, points) {
  context.beginPath();
  points.forEach((one) => context.lineTo(...one));
  context.stroke();
}
function eventOn(map, {clientX, clientY}) { // from -1 to 1, upward
  const box = map.getBoundingClientRect(), half = box.width / 2;
  return [(clientX - box.left) / half - 1, 1 - (clientY - box.top) / half];
}
function arrowOf({key, shiftKey}, range, step = (shiftKey ? 0.1 : 0.02) * range) {
  return {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step]}[key];
}
function drawPrior(context, toMap, {scale, line, radii, isSphere, isPrior, names: [across, up]}) { // circles, and the names of the axes
  const font = `${11 * scale}px system-ui, sans-serif`, {width} = context.canvas;
  Object.assign(context, {globalAlpha: 1, strokeStyle: line, fillStyle: line, lineWidth: scale, textAlign: "center", font});
  context.setLineDash([4 * scale, 4 * scale]);
  radii.forEach((radius) => path(context, circle(radius).map(toMap)));
  context.setLineDash([]);
  const haloed = (text, x, y) => (Object.assign(context, {lineWidth: 4 * scale, lineJoin: "round", strokeStyle: css("--map")}).strokeText(text, x, y), context.fillText(text, x, y));
  for (const radius of radii) {
    const [x, y] = toMap([0, radius]), of = isPrior ? "prior" : "N(0, I)";
    haloed(isSphere ? "the sphere" : radius === 1 ? `${of}: 1 sd` : `${radius}`, x, y - 5 * scale);
  }
  const [x, y] = toMap([0, 0]).map((one) => clamp(one, 24 * scale, width - 56 * scale)); // by the axes, or at an edge
  context.fillText(`${across} \u2192`, width - 22 * scale, y - 6 * scale);
  if (up) context.fillText(`\u2191 ${up}`, x + 24 * scale, 13 * scale);
}
function drawRing(context, place, scale) { // at the edge where it lies outside
  for (const [strokeStyle, lineWidth] of [[css("--map"), 5 * scale], [css("--ink"), 2 * scale]]) {
    mark(Object.assign(context, {strokeStyle, lineWidth}), 0, place.map((one) => clamp(one, 0, context.canvas.width)), 8 * scale);
    context.stroke();
  }
}
function viewOf(groups, {hasDensity, isSphere, isBits}) { // of each group all places but a few, and the prior's circle of one standard deviation
  const within = (values) => [0.001, 0.999].map((share) => values[Math.round(share * (values.length - 1))]);
  const ends = [0, 1].map((d) => groups.map((places) => within(places.map((place) => place[d]).sort((a, b) => a - b))))
    .map((pairs) => [...pairs, hasDensity && !isBits ? [-1.2, 1.2] : pairs[0]])
    .map((pairs) => [Math.min(...pairs.map(([low]) => low)), Math.max(...pairs.map(([, high]) => high))]);
  if (isSphere) return {middle: [0, 0], range: 1.12};
  return {middle: ends.map(mean), range: 0.53 * Math.max(1e-3, ...ends.map(([low, high]) => high - low))};
}
function roving(group) { // one tab stop for all buttons of a group, and arrow keys between them
  const all = [...group.children], stop = (one) => all.forEach((other) => (other.tabIndex = other === one ? 0 : -1));
  stop(all[0]);
  for (const one of all) one.onfocus = () => stop(one);
  group.onkeydown = (event) => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key], i = all.indexOf(event.target) + step;
    if (step && all[i]) (event.preventDefault(), all[i].focus());
  };
}
function introduce({title: [title, ...more], notes}, dots) {
  find("title").textContent = title;
  find("subtitle").textContent = more.join(" \u00b7 ");
  if (find("about")) find("about").textContent = find("subtitle").textContent;
  find("idea").textContent = dots;
  find("notes").querySelector("ul").append(...notes.map((textContent) => element("li", {textContent})));
}
// The story, from step 1 on; 0 closes it. What a step is about has its number in data-step. Return a function that tells a
// step of those told; `enter` is called with the step and the one before it, undefined where it was closed.
const isInside = parent !== self;
function setUpStory(told, enter) {
  const tell = (number) => {
    const step = told[number - 1]?.dataset.step, {step: before} = tell;
    Object.assign(tell, {number, step});
    find("tour").ariaExpanded = !(find("story").hidden = !step);
    document.querySelectorAll("[data-step]").forEach((one) => one.classList.toggle("lit", Boolean(step) && one.dataset.step.includes(step)));
    enter(step, before);
    if (!step) return before && find("tour").focus();
    [find("back").disabled, find("next").textContent] = [number === 1, number < told.length ? "Next" : "Done"];
    if (!isInside) document.querySelector("main .lit").scrollIntoView({block: "nearest"}); // or the window around would scroll
    find("next").focus({preventScroll: true});
  };
  tell.number = 0;
  told.forEach((one, i) => one.prepend(`${i + 1} of ${told.length}: `));
  find("tour").onclick = () => tell(tell.number ? 0 : 1);
  find("back").onclick = () => tell(tell.number - 1);
  find("next").onclick = () => tell((tell.number + 1) % (told.length + 1));
  addEventListener("keydown", ({key}) => key === "Escape" && tell.number && tell(0));
  find("story").onkeydown = ({key}) => key === "ArrowRight" ? find("next").click() : key === "ArrowLeft" && find("back").click();
  return tell;
}
function writeAddress(found) { // which opens the page as it is now
  const text = Object.entries(found).filter(([, value]) => value !== null && value !== undefined).map((one) => one.join("=")).join("&");
  clearTimeout(writeAddress.timer);
  writeAddress.timer = setTimeout(() => history.replaceState(null, "", `#${text}`), 300);
}
function save(canvas, download, below = 0, draw = () => {}, factor = Math.ceil(400 / canvas.width)) { // small ones enlarged, each pixel a square; `draw` is for what stands below
  const copy = element("canvas", {width: factor * canvas.width, height: factor * canvas.height + below}), context = Object.assign(copy.getContext("2d"), {imageSmoothingEnabled: false, fillStyle: css("--map")});
  context.fillRect(0, 0, copy.width, copy.height);
  context.drawImage(canvas, 0, 0, factor * canvas.width, factor * canvas.height);
  draw(context, factor * canvas.height);
  element("a", {href: copy.toDataURL(), download}).click();
}
const start = (show) => show().catch((error) => {
  const why = typeof DecompressionStream === "undefined" ? "this browser is too old for it" : error.message;
  find("message").textContent = `The page cannot be shown: ${why}.`;
  throw error;
});

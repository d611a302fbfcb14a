// What the page shows: the map, an image and its ELBO, samples, sliders, and the equation of the bound.
"use strict";

const MOST_PIXELS = 40e6, DRAWS = 10, MOST_LABELS = 12, SLICE_OF_TILES = 12; // of a file; of z for a bound, as in `pvae score`; ms

async function show() {
  const content = await unpack(find("content").textContent), {given} = content, numLabels = given ? given.shape[1] : 0;
  const yOf = (i) => Array.from(given ? given.data.subarray(i * numLabels, (i + 1) * numLabels) : []); // of an image
  const model = {...content, y: yOf(0)}, vae = vaeOf(model), size = vae.sizes.at(-1);
  const [channels, height, width] = content.shape, area = height * width, names = content.names.slice(-size);
  const [numImages] = content.images.shape, [numPoints, columns] = content.points.shape, {labels, inner} = content;
  const isLayered = vae.sizes.length > 1;
  const total = sum(vae.sizes), hasMore = total > 2; // latents than the map has axes
  const origin = () => ({
    top: list(size, (i) => (vae.isSphere && i === 0 ? 1 : 0)),
    offsets: vae.sizes.slice(0, -1).map((one) => Array(one).fill(0)),
  });
  const state = {...origin(), model, plane: 0, tiles: false, focus: null, x: null, scored: null, cloud: [],
    moved: [], isWhole: hasMore, dot: null, kept: null, held: "the origin", rest: origin(), instant: content.history.length, share: 1};
  const say = (text) => ((find("message").textContent = text), later("message", "", 9000));

  // Pixels
  const toX = (bytes) => Float32Array.from(bytes, (byte) => (content.symmetric ? (2 * byte) / 255 - 1 : byte / 255));
  const imageX = (i) => toX(content.images.data.subarray(i * channels * area, (i + 1) * channels * area));
  const labelOf = (i) => (labels ? content.label_names[labels.data[i]] : "");
  const isolated = (name) => `\u2068${name}\u2069`; // a name may run from right to left
  const nameOf = (i) => [content.image_names[i], labelOf(i)].filter(Boolean).map(isolated).join(": ");
  const dotName = (i) => (i < numImages ? nameOf(i) : labelOf(i) || "a test image");
  const axisName = (i, {dims} = content.planes[state.plane]) => (dims.length ? subscript(names[dims[i]]) : `direction ${i + 1}`);
  function paint(canvas, x) {
    const image = new ImageData(width, height);
    for (let i = 0; i < 4 * area; i++) {
      const value = x[(channels === 1 ? 0 : i % 4) * area + (i >> 2)];
      image.data[i] = i % 4 === 3 ? 255 : Math.round(255 * (content.symmetric ? (value + 1) / 2 : value));
    }
    Object.assign(canvas, {width, height}).getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }
  const pixels = (x) => paint(element("canvas", {className: "pixels"}), x);
  const thumb = (label, x, onclick) => element("button", {className: "thumb", ariaLabel: label, title: label, onclick}, pixels(x));

  // Where we are: z of the top layer, and the distance of the other layers from their prior means
  const axes = () => content.planes[state.plane].axes, toPlane = (z) => onPlane(axes(), z);
  const whole = ({top, offsets} = state) => vae.join(vae.isSphere ? unit(top) : top, offsets);
  const parts = (z) => ({top: Array.from(z.slice(-size)), offsets: isLayered ? vae.offsets(z) : []});
  const at = (u, v, top = state.top) => zAt([u, v], axes(), top, vae.isSphere, state);
  const move = (to) => (Object.assign(state, to).frame ||= requestAnimationFrame(drawHere));
  const retile = () => (clearTimeout(retile.timer), (retile.timer = setTimeout(() => state.tiles && drawTiles(), 200)));
  const redraw = () => (state.mapFrame ||= requestAnimationFrame(() => (drawMap(), (state.mapFrame = 0))));
  function jump(to, held = state.held) { // to codes that rest there when the pointer has left the map
    move({moved: [], ...to, held, dot: null, kept: null});
    state.rest = {top: state.top, offsets: state.offsets, held, dot: null, kept: null};
    if (size > 2 || isLayered) retile(); // of the other coordinates
  }
  const codeAt = (i) => parts(Array.from(content.codes.data.subarray(i * total, (i + 1) * total)));
  function aim(place) { // at the whole code of a dot under the pointer, or at a place of the plane
    const i = nearest(place, shownPoints());
    move(state.isWhole ? {...codeAt(i), dot: i, kept: i, held: dotName(i)} : {top: at(...place), dot: null});
  }
  function drawGiven(start = performance.now()) { // the same z, given each label
    content.label_names.slice(0, MOST_LABELS).forEach((_, k) =>
      paint(find("given-each").children[k].firstChild, vaeOf({...state.model, y: content.label_names.map((_, other) => Number(other === k))}).mean(whole())));
    Object.assign(state, {givenTimer: 0, givenTook: performance.now() - start});
  }
  function drawHere() {
    state.frame = 0;
    paint(find("decoded"), vae.mean(whole()));
    if (given && labels) state.givenTimer ||= setTimeout(() => drawGiven(), 2 * (state.givenTook || 0)); // rarely where it takes long
    drawOverlay();
    const place = toPlane(state.top), label = labelOf(nearest(place, shownPoints()));
    find("position").textContent = place.slice(0, size).map((one, i) => `${axisName(i)} = ${written(one)}`).join(", ");
    const {dims} = content.planes[state.plane], others = `${dims.length ? `the other ${total - 2} latents` : "the rest of z"}: those of ${state.held}`;
    const held = !hasMore ? "" : state.dot === null ? others : `the whole code of ${dotName(state.dot)}`;
    const near = label && !given && !hasMore && `nearest code: ${label}`;
    find("near").textContent = [held, near].filter(Boolean).join("; ");
    later("spoken", find("place").innerText, 500); // a screen reader hears where the pointer rests
    find("latents").querySelectorAll("input").forEach((one) => one.follow());
    remember();
  }

  // The map
  const map = find("map"), still = element("canvas");
  const point = (i, {data} = content.points) => [0, 1].map((d) => data[i * columns + 2 * state.plane + d]);
  const distance = (i, [u, v], [x, y] = point(i)) => Math.hypot(x - u, y - v);
  function nearest([u, v], count, {data} = content.points) {
    let best = 0, least = Infinity;
    for (let i = 0, at = 2 * state.plane; i < count; i++, at += columns) {
      const far = (data[at] - u) ** 2 + (data[at + 1] - v) ** 2;
      if (far < least) [best, least] = [i, far];
    }
    return best;
  }
  // The map shows a view {middle, range}: a place, and half a side. A place on the canvas is from -1 to 1, upward.
  const placeOf = (on, {middle, range} = state) => middle.map((one, d) => one + range * on[d]);
  const onCanvas = (place, {middle, range} = state) => place.map((one, d) => (one - middle[d]) / range);
  const toMap = (place) => onCanvas(place).map((one, d) => ((1 + (d ? -one : one)) * map.width) / 2);
  const homeView = () => viewOf([list(numPoints, (i) => point(i, instants.at(-1).points))], vae);
  function look(view) { // at a part of that view, or all of it
    const {home} = state, {middle, range} = view || home, part = clamp(range, home.range / 30, home.range), most = home.range - part;
    Object.assign(state, {range: part, middle: middle.map((one, d) => clamp(one, home.middle[d] - most, home.middle[d] + most))});
    find("zoom-out").hidden = part === home.range;
    (redraw(), retile());
  }
  function zoom(by, on, place = placeOf(on)) { // then the place is there on the canvas
    const range = clamp(state.range / by, state.home.range / 30, state.home.range);
    act("look", {range, middle: place.map((one, d) => one - range * on[d])});
  }
  function drawMap() {
    if (!map.clientWidth) return; // in an element that is hidden
    const scale = (state.scale = devicePixelRatio || 1), context = still.getContext("2d"), paper = css("--map"), {sheet} = state;
    map.width = map.height = still.width = still.height = Math.round(map.clientWidth * scale);
    Object.assign(context, {fillStyle: paper}).fillRect(0, 0, map.width, map.width);
    if (state.tiles && sheet)
      context.drawImage(sheet.canvas, ...toMap(placeOf([-1, 1], sheet)), ...Array(2).fill((sheet.range / state.range) * map.width));
    drawDots(context, scale, paper);
    const line = state.tiles ? "#fff" : css("--soft"), radii = vae.isBits ? [] : vae.isSphere ? [1] : [1, 2, 3].filter((one) => one < state.home.range);
    drawPrior(context, toMap, {scale, line, radii, isSphere: vae.isSphere, isPrior: content.prior.top.kind === "normal", names: [0, 1].slice(0, size).map((i) => axisName(i))});
    if (labels) drawNames(context, scale, paper);
    drawOverlay();
  }
  const shownPoints = () => (isLast(state.instant) && state.share === 1 ? numPoints : past); // of an instant, fewer are known
  function drawDots(context, scale, paper) { // copies of a picture of each kind; those with an image come last
    const half = 6 * scale, pictures = {};
    for (let i = shownPoints() - 1; i >= 0; i--) {
      const k = labels ? labels.data[i] : 0, hasImage = i < numImages && vae.canEncode, kind = 2 * k + hasImage, [x, y] = toMap(point(i));
      if (!pictures[kind]) {
        const dot = (pictures[kind] = element("canvas", {width: 2 * half, height: 2 * half})).getContext("2d");
        const globalAlpha = ![null, k].includes(state.focus) ? 0.07 : hasImage ? 0.75 : 0.5;
        mark(Object.assign(dot, {globalAlpha, fillStyle: colour(k), strokeStyle: paper}), k, [half, half], (hasImage ? 3.6 : 2.1) * scale);
        (dot.fill(), hasImage && dot.stroke());
      }
      context.drawImage(pictures[kind], x - half, y - half);
    }
  }
  function drawNames(context, scale, paper) { // each at the median of its dots in view, or at the nearest height that is free
    const own = content.label_names.map(() => [[], []]), high = 15 * scale;
    const placed = [1, 2, 3].map((radius) => toMap([0, radius])).map(([x, y]) => ({x, y, half: 34 * scale})); // names of the circles
    const median = (values) => values.sort((a, b) => a - b)[values.length >> 1], isSeen = (one) => one >= 0 && one <= map.width;
    for (let i = 0; i < shownPoints(); i++) {
      const place = toMap(point(i)), k = labels.data[i];
      if (k >= 0 && place.every(isSeen) && [null, k].includes(state.focus)) place.forEach((one, d) => own[k][d].push(one));
    }
    const middles = own.filter(([xs]) => xs.length).map((ends) => ends.map(median)), spans = [0, 1].map((d) => middles.map((one) => one[d]));
    const areTogether = spans.every((one) => Math.max(...one) - Math.min(...one) < 0.3 * map.width);
    if (!isLast(state.instant) && areTogether) return (state.placed = []); // early in a training, dots lie over each other
    const font = `600 ${12.5 * scale}px system-ui, sans-serif`;
    Object.assign(context, {font, lineJoin: "round", lineWidth: 4 * scale, strokeStyle: paper, fillStyle: css("--ink")});
    own.forEach(([xs, ys], k) => {
      if (!xs.length) return;
      const name = content.label_names[k], half = context.measureText(name).width / 2, start = median(ys);
      const x = clamp(median(xs), half, map.width - half), heights = list(99, (i) => start + ((i % 2 ? i + 1 : -i) * high) / 6);
      const y = heights.find((y) => y > high && y < map.width - high / 3 &&
        placed.every((one) => Math.abs(one.x - x) > half + one.half || Math.abs(one.y - y) > high));
      if (y !== undefined) (placed.push({name, x, y, half}), context.strokeText(name, x, y), context.fillText(name, x, y));
    });
    state.placed = placed;
  }
  function drawOverlay() {
    const context = map.getContext("2d"), scale = state.scale, warm = css("--warm"), topOf = (z) => toPlane(z.slice(-size));
    if (!scale) return; // the map is not drawn yet
    context.drawImage(still, 0, 0);
    drawRing(context, toMap(toPlane(state.top)), scale); // below a cloud that is smaller
    Object.assign(context, {lineWidth: 2 * scale, strokeStyle: warm, fillStyle: warm});
    if (state.scored && !find("image").hidden) {
      [1, 2].forEach((radius) => path(context, ellipse(state.scored.q, axes(), radius).map(toMap)));
      state.cloud.forEach((z) => (mark(context, 0, toMap(topOf(z)), 1.8 * scale), context.fill()));
      (mark(context, 10, toMap(topOf(state.scored.points[0].z)), 4 * scale), context.stroke());
    }
    if (state.kept !== null && state.dot === null) // the dot whose other latents are held
      (mark(Object.assign(context, {strokeStyle: css("--ink")}), 0, toMap(point(state.kept)), 5 * scale), context.stroke());
  }
  async function drawTiles() { // first the middle of each 3 x 3 of them, as large as these; then all, from the pointer outward
    const count = 3 * clamp(Math.floor(map.clientWidth / 108), 3, 5), token = (state.token = {}), {top, offsets, middle, range} = state;
    const canvas = element("canvas", {width: count * width, height: count * height}), here = toPlane(top), isOver = () => state.token !== token || !state.tiles;
    const tiles = list(count ** 2, (i) => [i % count, Math.floor(i / count)]).map(([column, row]) => {
      const place = placeOf([column, count - 1 - row].map((one) => (2 * one + 1) / count - 1));
      return {column, row, z: whole({top: at(...place, top), offsets}), far: Math.hypot(place[0] - here[0], place[1] - here[1])};
    }).sort((one, other) => one.far - other.far);
    let start = performance.now();
    for (const side of [3, 1]) {
      for (const tile of tiles.filter(({column, row}) => side === 1 || (column % 3 === 1 && row % 3 === 1))) {
        const [x, y] = [tile.column, tile.row].map((one) => one - (side - 1) / 2);
        canvas.getContext("2d").drawImage(pixels((tile.mean ||= vae.mean(tile.z))), x * width, y * height, side * width, side * height);
        if (performance.now() - start < SLICE_OF_TILES) continue;
        if (side === 1) redraw();
        await pause(0);
        if (isOver()) return; // other tiles, or none, are wanted by now
        start = performance.now();
      }
      state.sheet = {canvas, middle, range, tiles};
      redraw();
    }
  }
  const acts = { // which the frames of several runs do together
    aim,
    go: (place) => move({dot: null, top: at(...place)}),
    rest: () => move(state.rest),
    stay: () => (state.rest = {top: state.top, offsets: state.offsets, held: state.held, dot: state.dot, kept: state.kept}),
    pick: (i) => (closePad(), press(find("strip").children, i), (state.x = null), acts.give(yOf(i)), take(imageX(i), nameOf(i), i)),
    give: (y) => given && (become(state.instant, y), retile()),
    tiles: () => ((find("tiles").ariaPressed = state.tiles = !state.tiles), (state.tiles ? drawTiles : drawMap)()),
    look,
    home: (home) => (Object.assign(state, {home}), look(null)),
    focus: (k) => (press(find("legend").children, (state.focus = state.focus === k ? null : k)), drawMap()),
  };
  const isFrame = document.body.classList.contains("is-frame"), tell = (...one) => isFrame && parent.postMessage(one, "*");
  const act = (name, value) => (acts[name](value), tell(name, value));
  const pick = (i) => act("pick", i), toggleTiles = () => act("tiles");
  const held = new Map(); // places of the pointers that hold the map: a mouse drags what is zoomed, and two fingers zoom
  const grip = (all = [...held.values()]) => ({on: [0, 1].map((d) => mean(all.map((one) => one[d]))),
    span: all.length > 1 ? Math.hypot(all[0][0] - all[1][0], all[0][1] - all[1][1]) || 1e-3 : 1});
  map.onpointermove = (event) => {
    if (!held.has(event.pointerId) || (held.size < 2 && event.pointerType !== "mouse")) return act("aim", placeOf(eventOn(map, event)));
    const before = grip(), place = placeOf(before.on);
    held.set(event.pointerId, eventOn(map, event));
    zoom(grip().span / before.span, grip().on, place);
  };
  map.onpointerup = map.onpointercancel = ({pointerId}) => held.delete(pointerId);
  map.onpointerleave = ({pointerId, pointerType}) => (held.delete(pointerId), pointerType === "mouse" && act("rest"));
  map.onpointerdown = (event) => {
    const place = placeOf(eventOn(map, event)), i = nearest(place, numImages);
    if (event.pointerType !== "mouse" || state.range < state.home.range) held.set(event.pointerId, eventOn(map, event));
    if (held.size > 1) return;
    if (vae.canEncode && distance(i, place) < (18 / map.clientWidth) * state.range) pick(i);
    else (act("aim", place), act("stay"));
  };
  map.onwheel = (event) => { // where the whole map is seen, the wheel moves the page down, and always the page around a frame
    const by = Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : event.ctrlKey ? 0.01 : 0.002)), isZooming = by > 1 || state.range < state.home.range;
    if (event.ctrlKey || (isZooming && !document.body.classList.contains("is-inside"))) (event.preventDefault(), zoom(by, eventOn(map, event)));
  };
  map.ondblclick = find("zoom-out").onclick = () => act("look", null);
  map.onkeydown = (event) => {
    const by = arrowOf(event, state.range), here = toPlane(state.top), {home} = state, {key} = event;
    if (by) {
      const place = here.map((one, d) => clamp(one + by[d], home.middle[d] - home.range, home.middle[d] + home.range));
      act("go", place);
      if (onCanvas(place).some((one) => Math.abs(one) > 1)) act("look", {range: state.range, middle: place});
    } else if (key === "Enter" && vae.canEncode) pick(nearest(here, numImages));
    else if ("+=-".includes(key)) zoom(key === "-" ? 1 / 1.5 : 1.5, onCanvas(here).map((one) => clamp(one, -1, 1)));
    else if (key === "0") act("look", null);
    if (by || "+=-0".includes(key) || key === "Enter") event.preventDefault();
  };
  addEventListener("keydown", ({key}) => key === "Escape" && ((find("message").textContent = ""), tellStory.number || act("look", null)));
  addEventListener("keydown", ({key, ctrlKey, metaKey, target}) =>
    key === "t" && !ctrlKey && !metaKey && !/INPUT|SELECT/.test(target.tagName) && toggleTiles());

  // An image, q(z | x), and its bookkeeping
  function take(x, name, picked = null) {
    if (!isLast(state.instant)) toInstant(instants.length - 1); // whose encoder is known
    Object.assign(state, {x, picked});
    paint(find("x"), x);
    find("invert").hidden = true;
    find("x-name").textContent = name;
    jump(parts(centre(encodeImage())), name);
  }
  function encodeImage() {
    const q = vae.posterior(state.x);
    state.cloud = cloudOf(q, vae);
    score(q);
    return q;
  }
  function score(q) {
    const found = (state.scored = vae.score(state.x, list(vae.hasDensity ? DRAWS : 1, () => q.draw()), q));
    const {distortions, distortion, rate, rates, totals, elbo, points} = found;
    const spread = (values, middle = mean(values)) => Math.sqrt(sum(values.map((one) => (one - middle) ** 2)) / (DRAWS - 1));
    const deviation = vae.hasDensity ? spread(distortions) : undefined; // over the draws
    const numbers = {distortion, rate, elbo, one: deviation === undefined ? undefined : distortions[0], error: deviation};
    const elbos = totals && distortions.map((one, s) => -one - totals[s]);
    const perDraw = vae.hasDensity ? {distortion: distortions, rate: !found.isExact && totals, elbo: elbos} : {};
    for (const [id, value] of Object.entries(numbers)) {
      const stderr = perDraw[id] ? ` \u00b1 ${(spread(perDraw[id]) / Math.sqrt(DRAWS)).toFixed(2)}` : "";
      find(id).hidden = value === undefined;
      find(id).querySelector("td").textContent = value === undefined ? "" : written(value) + stderr;
    }
    paint(find("reconstruction"), vae.mean(points[0].z));
    find("rates").hidden = !rates || rates.length < 2;
    if (rates) drawBars(rates.map((one, i) => [one, content.names[i]]));
    drawOverlay();
  }
  function drawBars(all) {
    const sorted = [...all].sort((one, other) => other[0] - one[0]), [most, name] = sorted[0];
    find("bars").replaceChildren(...(all.length > 64 ? sorted.slice(0, 64) : all).map(([rate, of]) => {
      const style = `height: ${(100 * Math.max(0, rate)) / Math.max(most, 0.1)}%`;
      return Object.assign(element("i", {title: `${subscript(of)}: ${rate.toFixed(2)} nats`}), {style});
    }));
    const what = `Rate of ${all.length > 64 ? "the 64 largest of " : "each of "}${all.length} latents: `;
    const active = all.filter(([rate]) => rate > 0.1).length, text = find("bars-text");
    find("bars").ariaLabel = text.textContent = `${what}${active} above 0.1 nats, at most ${most.toFixed(2)} in ${subscript(name)}; the full height is ${Math.max(most, 0.1).toFixed(2)}.`;
  }

  // A file or a drawing
  const closePad = () => (find("draw").ariaExpanded = !(find("drawing").hidden = true));
  const takeFile = (file, url = URL.createObjectURL(file)) => readFile(file, url)
    .catch(() => say(`This browser cannot read ${file.name} as an image.`)).finally(() => URL.revokeObjectURL(url));
  async function readFile(file, url, image = new Image()) {
    await new Promise((done, fail) => Object.assign(image, {onload: done, onerror: fail, src: url}));
    const {naturalWidth: w, naturalHeight: h} = image, [tall, wide] = inner, millions = (number) => Math.round(number / 1e6);
    if (w * h > MOST_PIXELS)
      return say(`${file.name} has ${millions(w * h)} megapixels, and the page takes at most ${millions(MOST_PIXELS)}.`);
    const bitmap = await createImageBitmap(file); // which, unlike an <img>, fails where a part of the file is missing
    const canvas = element("canvas", {width: wide, height: tall}), context = canvas.getContext("2d", {willReadFrequently: true});
    const share = Math.min(w / wide, h / tall);
    const cut = content.keep_aspect ? [share * wide, share * tall] : [w, h], isSame = w === wide && h === tall;
    Object.assign(context, {fillStyle: "#fff", imageSmoothingQuality: "high"}); // white behind transparent pixels
    context.fillRect(0, 0, wide, tall);
    context.drawImage(bitmap, (w - cut[0]) / 2, (h - cut[1]) / 2, ...cut, 0, 0, wide, tall);
    takeCanvas(canvas, file.name, isSame ? [] : [`resized from ${w} x ${h} to ${wide} x ${tall} pixels`]);
    closePad();
  }
  function takeCanvas(canvas, name, changes) {
    const {data} = canvas.getContext("2d").getImageData(0, 0, inner[1], inner[0]), bytes = new Uint8Array(channels * area);
    for (let i = 0, pad = (height - inner[0]) / 2; i < inner[0] * inner[1]; i++) {
      const rgb = data.subarray(4 * i, 4 * i + 3), place = (Math.floor(i / inner[1]) + pad) * width + (i % inner[1]) + pad;
      for (let c = 0; c < channels; c++) {
        const value = channels === 3 ? rgb[c] : Math.round(dot([0.299, 0.587, 0.114], rgb));
        const isSet = content.binarize === "threshold" ? value >= 128 : Math.random() * 255 < value;
        bytes[c * area + place] = content.binarize === "none" ? value : 255 * isSet;
      }
    }
    if (channels === 1 && data.some((one, i) => i % 4 < 2 && one !== data[i + 1])) changes.push("made grey");
    if (content.binarize !== "none") changes.push("made black and white");
    if (changes.length && canvas !== pad) say(`${name}: ${changes.join(", ")}, as in training.`);
    press(find("strip").children, -1);
    take(toX(bytes), name);
    find("invert").hidden = canvas === pad || channels > 1 || isLight(bytes) === (paper === "#fff");
    find("invert").onclick = () => {
      Object.assign(canvas.getContext("2d"), {globalCompositeOperation: "difference", fillStyle: "#fff"}).fillRect(0, 0, ...inner.toReversed());
      takeCanvas(canvas, `${name}, inverted`, []);
    };
  }
  const pad = find("pad"), brush = pad.getContext("2d", {willReadFrequently: true});
  const edge = ((height - inner[0]) * width + width - inner[1]) / 2; // the first pixel that is not padding
  const isLight = (bytes) => mean(bytes.subarray(edge, edge + inner[1])) > 127;
  const [paper, ink] = isLight(content.images.data) ? ["#fff", "#000"] : ["#000", "#fff"];
  function clearPad() {
    Object.assign(pad, {width: inner[1], height: inner[0]}).style.width = `min(168px, ${(30 * inner[1]) / inner[0]}vh)`;
    Object.assign(brush, {fillStyle: paper, strokeStyle: ink, lineCap: "round", lineWidth: inner[1] / 13});
    brush.fillRect(0, 0, ...inner.toReversed());
  }
  pad.onpointerdown = pad.onpointermove = (event) => {
    if (!event.buttons) return;
    const to = [event.offsetX / pad.clientWidth * inner[1], event.offsetY / pad.clientHeight * inner[0]];
    if (event.type === "pointerdown") pad.setPointerCapture(event.pointerId);
    brush.beginPath();
    brush.moveTo(...(event.type === "pointerdown" ? to : pad.from));
    brush.lineTo(...(pad.from = to));
    brush.stroke();
  };
  pad.onpointerup = () => takeCanvas(pad, "your drawing", []);
  find("clear").onclick = clearPad;
  const unfold = (button, part) => (button.ariaExpanded = !(part.hidden = !part.hidden));
  find("draw").onclick = () => (unfold(find("draw"), find("drawing")), clearPad());
  find("redraw").onclick = () => (score(state.scored.q), jump(parts(state.scored.points[0].z)));
  find("file").onchange = ({target, target: {files: [file]}}) => // the same file can be chosen again
    ((target.value = ""), file && takeFile(file));
  window.ondragover = window.ondragleave = window.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", event.type === "dragover");
    const [file] = event.type === "drop" && vae.canEncode ? event.dataTransfer.files : [];
    if (file) (openTab("image"), takeFile(file));
  };

  // Directions of attributes, samples, and sliders of latents
  find("attributes").hidden = !content.attributes.length;
  find("attributes").querySelector("div").append(...content.attributes.map(([name, {data}], k) =>
    slider(name.replaceAll("_", " "), 3, () => state.moved[k] || 0, (value) => {
      const top = state.top.map((one, i) => one + (value - (state.moved[k] || 0)) * data[i]);
      jump({top: vae.isSphere ? unit(top) : top, moved: Object.assign([...state.moved], {[k]: value})});
    })));
  const drawSamples = (samples) => {
    find("sheet").replaceChildren(...(state.samples = samples).map((z, i) =>
      thumb(`sample ${i + 1}`, vae.mean(z), () => (press(find("sheet").children, i), jump(parts(z), `sample ${i + 1}`)))));
    roving(find("sheet"));
  };
  find("again").onclick = () => drawSamples(list(36, () => vae.drawPrior()));
  function drawSliders() {
    const {dims} = content.planes[state.plane], shown = [...dims, ...content.active.filter((d) => !dims.includes(d)).slice(0, 8)];
    const most = vae.isSphere || vae.isBits ? 1 : Math.ceil(Math.max(3, state.home.range)), set = (values, d, value) => values.with(d, value);
    const group = (title, sliders) => element("fieldset", {}, element("legend", {textContent: title}), ...sliders);
    const top = (d) => slider(subscript(names[d]), most, () => state.top[d], (value) =>
      jump({top: vae.isSphere ? unit(set(state.top, d, value)) : set(state.top, d, value)}), vae.isBits);
    const lower = (l, d) => slider(`z${l + 1}_${d + 1}`, 3, () => state.offsets[l][d], (value) =>
      jump({offsets: set(state.offsets, l, set(state.offsets[l], d, value))}));
    const others = content.lower.map((some, l) =>
      group(`z${l + 1}, in standard deviations from its prior mean`, some.map((d) => lower(l, d))));
    const title = vae.isBits ? "the most active bits" : isLayered ? `z${vae.sizes.length}, the top layer` : "the most active latents";
    find("sliders").replaceChildren(group(title, shown.map(top)), ...others.reverse());
  }
  find("origin").onclick = () => jump(origin(), "the origin");

  // Instants of the training, of which the last is the run as it is; the others have codes of a few of the images, and some
  // have a decoder.
  const instants = [...content.history, {...content, points: {data: content.points.data.slice()}}], past = content.history[0]?.points.shape[0];
  const isLast = (i) => i === instants.length - 1, pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
  const isFixed = ["normal", "sphere"].includes(content.prior?.top.kind); // or trained, so that draws are of an instant
  const decoderAt = (i) => instants.slice(0, i + 1).findLast((one) => one.decoder) || instants.find((one) => one.decoder);
  function become(instant, y) { // the VAE of an instant, given labels y
    const {prior, decoder, plane, likelihood} = decoderAt(instant);
    Object.assign(state, {instant, token: null, model: {...content, prior, decoder, plane: plane || content.plane, likelihood, y}});
    Object.assign(vae, vaeOf(state.model));
    [...find("given").options].forEach((one, k) => (one.selected = y[k] > 0));
    document.body.classList.toggle("is-past", !isLast(instant));
    if (isLast(instant) && state.x) encodeImage();
    else if (!isLast(instant)) {
      Object.assign(state, {scored: null, cloud: []});
      if (state.picked !== null && state.picked < past) paint(find("reconstruction"), vae.mean(point(state.picked, instants[instant].points)));
    }
    find("reconstruction").nextElementSibling.textContent = `decoded from ${isLast(instant) ? "one draw of q(z | x)" : "its code"}`;
    if (state.samples) isFixed ? drawSamples(state.samples) : find("again").onclick();
    move({});
  }
  async function toInstant(i, seconds = 0) { // the dots move there in some seconds
    const from = content.points.data, to = instants[i].points.data, token = (state.moving = {}), start = performance.now();
    (become(i, state.model.y), drawCurve());
    for (let share = (state.share = 0); share < 1 && state.moving === token; state.share = share) {
      if (seconds) await new Promise(requestAnimationFrame);
      if (state.moving !== token) return; // meanwhile the dots went elsewhere
      share = seconds ? Math.min(1, (performance.now() - start) / 1000 / seconds) : 1;
      content.points.data = Float32Array.from(from, (one, j) => (j < to.length ? (1 - share) * one + share * to[j] : one));
      drawMap();
    }
    if (state.tiles && state.moving === token) await drawTiles();
  }
  function stop() {
    state.playing = null;
    find("play").textContent = "Play the training";
  }
  async function play() {
    const token = (state.playing = {}), seconds = matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.3;
    find("play").textContent = "Pause";
    if (isLast(state.instant)) (await toInstant(0), await pause(0.6));
    while (state.playing === token && !isLast(state.instant)) (await toInstant(state.instant + 1, seconds), await pause(seconds ? 0 : 0.4));
    if (state.playing === token) stop();
  }
  find("play").onclick = () => (state.playing ? stop() : play());
  find("instant").oninput = ({target}) => (stop(), toInstant(Number(target.value)));
  function drawCurve() { // of these images: steps across, on a logarithmic axis, and the ELBO up
    const canvas = find("curve"), scale = devicePixelRatio || 1, value = ({distortion, rate}) => -distortion - (vae.hasDensity ? rate : 0);
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((one) => Math.round(one * scale));
    const context = Object.assign(canvas, {width, height}).getContext("2d"), most = instants.at(-1).after, high = Math.max(...instants.map(value));
    const low = Math.min(...instants.filter(({after}) => after >= most ** 0.3).map(value)), [left, bottom] = [46 * scale, height - 18 * scale];
    const across = (after) => left + (Math.log1p(after) / Math.log1p(most)) * (width - left - 12 * scale), step = niceStep((high - low) / 2);
    const up = (one) => bottom - ((one - low) / (high - low || 1)) * (bottom - 10 * scale);
    Object.assign(context, {strokeStyle: css("--line"), fillStyle: css("--soft"), lineWidth: scale, font: `${11 * scale}px system-ui, sans-serif`, textAlign: "right"});
    for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step)
      (path(context, [[left, up(tick)], [width, up(tick)]]), context.fillText(tick.toFixed(Math.max(0, -Math.floor(Math.log10(step)))).replace("-", "\u2212"), left - 5 * scale, up(tick) + 4 * scale));
    context.textAlign = "center";
    for (const tick of [0, 1, 10, 100, 1000, 10000, 1e5].filter((one) => one <= most))
      (path(context, [[across(tick), bottom], [across(tick), bottom + 3 * scale]]), context.fillText(tick.toLocaleString("en"), across(tick), height - 3 * scale));
    context.save();
    context.beginPath();
    (context.rect(left, 0, width, bottom), context.clip()); // the first instants are far below
    path(Object.assign(context, {strokeStyle: css("--accent"), lineWidth: 2 * scale}), instants.map((one) => [across(one.after), up(value(one))]));
    context.restore();
    const one = instants[state.instant], by = decoderAt(state.instant);
    (mark(Object.assign(context, {fillStyle: css("--warm")}), 0, [across(one.after), Math.min(bottom, up(value(one)))], 4 * scale), context.fill());
    const bound = content.pseudo ? "pseudo-ELBO" : "ELBO", terms = vae.hasDensity ? `${bound} ${written(value(one))} = \u2212${written(one.distortion)} \u2212 ${written(one.rate)}` : `distortion ${written(one.distortion)}`;
    find("instant").value = state.instant;
    find("instant").ariaValueText = find("instant-text").textContent = `${one.after ? `after ${one.after.toLocaleString("en")} step${one.after > 1 ? "s" : ""}` : "before the first step"}: ${terms} nats`;
    find("curve-text").textContent = `Means over ${content.history_rows} test images; steps across, ${vae.hasDensity ? `${bound}, \u2212distortion \u2212 rate,` : "\u2212distortion"} up.` +
      (isLast(state.instant) ? "" : ` Images: by the decoder after ${by.after.toLocaleString("en")} steps.`);
  }

  // The story
  const told = [...document.querySelectorAll("#story li")].filter(({dataset: {step}}) =>
    step === "6" ? past : step === "7" ? vae.hasPrior && vae.canEncode : vae.canEncode || "34".includes(step));
  const tellStory = setUpStory(told, (step, before) => {
    remember();
    if (step && vae.canEncode) openTab(step === "7" ? "samples" : "image");
    if (step === "6") play();
    else if (before === "6") (stop(), toInstant(instants.length - 1));
    if (step === "3" && !vae.canEncode) vae.hasPrior && jump(parts(vae.drawPrior()), "a draw");
    else if (step === "3") (find("redraw").onclick(), glide(parts(state.scored.points[0].z), parts(centre(state.scored.q)).top));
  });
  async function glide({top, offsets}, from, start = performance.now()) { // z moves to a draw, in a second
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return move({top, offsets});
    for (let share = 0; share < 1 && tellStory.step === "3"; ) {
      share = Math.min(1, (performance.now() - start) / 1000);
      move({offsets, top: from.map((one, i) => (1 - share) * one + share * top[i])});
      await new Promise(requestAnimationFrame);
    }
  }

  // The address, which opens the page as it is now; and pictures
  function remember() {
    const z = [...state.top, ...state.offsets.flat()].map((one) => Number(one.toFixed(3)));
    if (!isFrame) writeAddress({image: state.picked, z, after: isLast(state.instant) ? null : instants[state.instant].after, step: tellStory.number || null, y: state.model.y.join("") || null});
  }
  function recall() {
    const hash = new URLSearchParams(location.hash.slice(1)), number = (name) => Number(hash.get(name) ?? NaN);
    const z = (hash.get("z") ?? "").split(",").map(Number), instant = instants.findIndex((one) => one.after === number("after"));
    if (vae.canEncode && number("image") in find("strip").children) pick(number("image"));
    else if (vae.canEncode && hash.has("z") && !hash.has("image")) say("The address has no drawing and no file: only the z of one.");
    if (given && hash.get("y")?.length === numLabels) acts.give(Array.from(hash.get("y"), Number));
    if (past && (instant >= 0 || !isLast(state.instant))) toInstant(instant >= 0 ? instant : instants.length - 1);
    tellStory(number("step") - 1 in told ? number("step") : 0);
    if (z.length === total && z.every(Number.isFinite) && hash.has("z"))
      jump({top: z.slice(0, size), offsets: split(vae.sizes.slice(0, -1), z.slice(size))}, "the address");
  }
  find("save").onclick = () => save(find("decoded"), `${content.title[0]} decoded.png`);
  find("save-map").onclick = () => save(map, `${content.title[0]} map.png`);

  // The rest of the page: tabs, the plane, classes, the equation, notes
  let training = null; // of the tab "Train one", which takes the place of the map
  const tabs = [...document.querySelectorAll("[role=tab]")];
  function openTab(name) {
    for (const one of tabs) {
      const isOpen = (one.ariaSelected = one.id === `tab-${name}`);
      one.tabIndex = isOpen ? 0 : -1;
      find(one.id.slice(4)).hidden = !isOpen;
    }
    document.body.classList.toggle("is-training", name === "train");
    if (name !== "train" && training?.isRunning) find("run").click();
    if (name === "samples" && !find("sheet").children.length) find("again").onclick();
    drawOverlay();
  }
  find("tab-samples").hidden = !vae.hasPrior;
  find("tab-image").hidden = !vae.canEncode;
  find("tab-train").hidden = !content.bits;
  tabs.filter((one) => !one.hidden).forEach((one, i, usable) => {
    one.onclick = () => openTab(one.id.slice(4));
    one.onkeydown = ({key}) => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[key], next = usable[(i + step + usable.length) % usable.length];
      if (step) (next.focus(), next.click());
    };
  });
  find("plane").append(...content.planes.map(({name}, value) => element("option", {value, textContent: name.split(", ").map(subscript).join(", ")})));
  find("plane").hidden = content.planes.length < 2;
  find("plane").onchange = ({target}) =>
    ((state.plane = Number(target.value)), (state.home = homeView()), (state.sheet = null), look(null), drawSliders(), move({}));
  if (given) find("given").append(...content.label_names.map((textContent) => element("option", {textContent})));
  find("given").onchange = ({target}) => act("give", Array.from(target.options, (one) => Number(one.selected)));
  find("given").parentNode.hidden = !Object.assign(find("given"), {multiple: !labels}).length;
  find("tiles").onclick = toggleTiles;
  find("whole").hidden = !hasMore;
  find("whole").onclick = ({target}) => (target.ariaPressed = state.isWhole = !state.isWhole);
  if (labels) (find("legend").append(...content.label_names.map((name, k) =>
    element("button", {ariaPressed: false, onclick: () => act("focus", k)}, element("span", {textContent: "\u25cf\u25a0\u25b2"[shape(k)], ariaHidden: true}), name))), roving(find("legend")));
  find("ask").onclick = () => unfold(find("ask"), find("why"));
  document.querySelectorAll("#why a").forEach((one) => (one.onclick = () => openTab("image")));
  document.querySelectorAll(".bound").forEach((one) => (one.textContent = content.pseudo ? "pseudo-ELBO" : "ELBO"));
  document.body.classList.add(vae.hasDensity ? "is-vae" : "is-autoencoder", vae.canEncode ? "is-encoder" : "is-decoder", content.pseudo ? "is-pseudo" : "is-bound");
  introduce(content, hasMore ? "Each dot is a test image; move over the map, and the nearest one is decoded from its whole code."
    : "Each dot is a test image; move over the map to see what lies between.");
  if (given && labels) find("given-each").append(...content.label_names.slice(0, MOST_LABELS).map((textContent) =>
    element("figure", {}, element("canvas", {className: "pixels", role: "img", ariaLabel: `decoded given ${textContent}`}), element("figcaption", {textContent}))));
  find("given-each").hidden = !(given && labels);
  find("picking").hidden = !vae.canEncode;
  find("between").hidden = !hasMore;
  const recolour = () => [...find("legend").children].forEach((one, k) => (one.firstChild.style.color = colour(k)));
  isDark.onchange = () => (recolour(), drawMap(), content.history.length && drawCurve());
  new ResizeObserver(() => map.clientWidth && Math.abs(map.width - map.clientWidth * devicePixelRatio) > 1 && drawMap()).observe(map);
  if (content.history.length) new ResizeObserver(() => find("curve").width !== Math.round(find("curve").clientWidth * (devicePixelRatio || 1)) && drawCurve()).observe(find("curve"));
  Object.assign(state, {home: homeView()}, homeView());
  (recolour(), drawMap(), drawSliders());
  if (vae.canEncode) {
    find("strip").append(...list(numImages, (i) => thumb(nameOf(i), imageX(i), () => pick(i))));
    roving(find("strip"));
    acts.pick(0); // the same in all frames
  } else openTab(vae.hasPrior ? "samples" : "latents");
  move({});
  find("how").textContent = state.scored && state.scored.isExact ? "here in closed form" : "here a mean over ten draws";
  find("history").hidden = !content.history.length;
  find("instant").max = instants.length - 1;
  if (content.history.length) drawCurve();
  (recall(), (window.onhashchange = recall));
  training = content.bits && setUpTraining(content);
  if (isFrame) onmessage = ({data: [name, value], source}) => source === parent && acts[name](value);
  tell("home", state.home);
  const tellHeight = () => parent.postMessage(["height", document.documentElement.offsetHeight], "*");
  document.body.classList.toggle("is-inside", isInside);
  if (isInside) new ResizeObserver(tellHeight).observe(document.body);
  window.pvae = {content, vae, state, training, imageX, at, drawHere, tellStory};
}

start(show);

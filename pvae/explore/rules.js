// The columns of a file, given those that are modelled: `to_file` of data/codec.py, to the last bit, and texts of `Column.text`.
"use strict";

const power = (exponent) => Number(`1e${exponent}`); // of 10
function rint(x) { // halves become even, as in NumPy
  const below = Math.floor(x);
  return x - below === 0.5 ? below + Math.abs(below % 2) : Math.round(x);
}
const roundTo = (x, digits) => (digits ? rint(x * power(digits)) / power(digits) : rint(x)); // as in NumPy
function toDigits(x, digits) { // as `round` of Python, of the number as it is stored
  const text = x.toFixed(digits), more = x.toFixed(digits + 1), isHalf = more.endsWith("5") && Number.isInteger(x * 2 ** (digits + 1));
  return Number(isHalf && !/[02468]$/.test(text) ? more.slice(0, -1) : text);
}
const microseconds = (format) => [["%f", 1], ["%S", 1e6], ["%M", 6e7], ["%H", 36e8], ["", 864e8]].find(([code]) => format.includes(code))[1];

function rounded({decimals, least, greatest, origin, step, date_format: format}, value) { // as `Column.rounded`, of a column without a limit
  const isInDigits = decimals !== null && decimals <= 8, spacing = step || (format ? microseconds(format) / 864e8 : isInDigits ? power(-decimals) : 1);
  if (format) return rint((origin + value) / spacing) * spacing - origin;
  let x = value;
  if (step && least !== null) x = least + step * rint((value - least) / step);
  else if (!isInDigits) return value;
  if (least !== null && origin + least >= 0) { // by `Column.natural_range`
    const low = origin + least, rest = low - spacing * Math.floor(low / spacing + 1e-6), first = low > 0 && rest < 1e-3 * spacing ? rest + spacing : rest;
    x = Math.max(x, (decimals === null ? 0 : first) - origin);
    if (decimals !== null && origin + greatest <= 1) x = Math.min(x, 1 - origin);
  }
  return isInDigits ? toDigits(origin + x, decimals) - origin : x;
}
const DATE_PARTS = { // of `strftime`: in UTC, and in English
  Y: (date) => String(date.getUTCFullYear()), y: (date) => two(date.getUTCFullYear() % 100), m: (date) => two(date.getUTCMonth() + 1), d: (date) => two(date.getUTCDate()),
  H: (date) => two(date.getUTCHours()), I: (date) => two(date.getUTCHours() % 12 || 12), p: (date) => (date.getUTCHours() < 12 ? "AM" : "PM"),
  M: (date) => two(date.getUTCMinutes()), S: (date) => two(date.getUTCSeconds()), f: (_, micro) => String(micro).padStart(6, "0"),
  b: (date) => named(date, {month: "short"}), B: (date) => named(date, {month: "long"}), a: (date) => named(date, {weekday: "short"}), A: (date) => named(date, {weekday: "long"}),
  j: (date) => String(1 + Math.floor((date - Date.UTC(date.getUTCFullYear(), 0)) / 864e5)).padStart(3, "0"), z: () => "+00:00", Z: () => "UTC", "%": () => "%",
};
const two = (number) => String(number).padStart(2, "0"), named = (date, part) => date.toLocaleString("en-US", {...part, timeZone: "UTC"});
function dateText(format, days) {
  const unit = microseconds(format), micro = rint((days * 864e8) / unit) * unit, date = new Date(Math.floor(micro / 1000));
  return format.replace(/%(.)/g, (code, part) => DATE_PARTS[part]?.(date, micro - 1e6 * Math.floor(micro / 1e6)) ?? code);
}
function general(number, digits, most = digits) { // as %g of Python: without zeros at the end
  const [mantissa, exponent] = number.toExponential(digits - 1).split("e"), short = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  if (-4 <= exponent && exponent < most) return short(number.toFixed(Math.max(digits - 1 - exponent, 0)));
  return `${short(mantissa)}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
}
function shortest(number) { // of which this number is read, or its float32
  const as = Math.fround(number) === number ? Math.fround : Number, digits = list(17, (k) => k + 1).find((k) => as(number.toPrecision(k)) === number);
  const text = general(number, digits, 16);
  return /[.e]/.test(text) ? text : `${text}.0`;
}
function textOf(column, value) { // as `Column.text` of a value that was computed
  const {categories, decimals, origin, suffix, point, date_format: format, least_decimals: fewest} = column;
  if (Number.isNaN(value)) return "";
  if (categories.length) return categories[clamp(rint(value), 0, categories.length - 1)];
  const number = origin + rounded(column, value);
  if (format) return dateText(format, number);
  let text = decimals === null ? general(number, 6) : decimals > 8 ? shortest(number) : toDigits(number, decimals).toFixed(decimals);
  if (fewest !== null && decimals !== null && decimals <= 8) {
    const [whole, fraction = ""] = text.split(".");
    text = `${whole}.${fraction.replace(/0+$/, "").padEnd(fewest, "0")}`.replace(/\.$/, "");
  }
  return text.replace(".", point) + suffix;
}

// By the class of a step: the column that it rewrote, or one of its flags, given those that it left; as `undo` of data/rule.py and data/parts.py.
const lookedUp = (x, keys, found) => found[keys.findIndex((key) => Math.abs(key - x) <= 1e-9)] ?? NaN;
const UNDO = {
  empty: ({column, made: [indicator]}, values) => (values[indicator] === 1 ? NaN : values[column]),
  function({column, of: [other], at, to, keys, found, unit}, values) {
    const x = values[other], own = values[column] ?? NaN, decided = lookedUp(at === "zero" && !Number.isNaN(x) ? Number(x === 0) : x, keys, found);
    if (to === "value") return Number.isNaN(decided) ? own : decided;
    if (decided === 1) return 0;
    return decided === 0 && own === 0 ? unit : own;
  },
  identity({column, of, factors, constant, keys, found, digits, most, made}, values) {
    const [first, second] = of.map((name) => values[name]), total = of.reduce((before, name, i) => before + factors[i] * values[name], 0);
    const due = roundTo(factors.length ? constant + total : first * (keys.length ? lookedUp(second, keys, found) : second), digits);
    if (Number.isNaN(due)) return roundTo(values[column] ?? NaN, digits);
    return roundTo(made.reduce((before, name) => before + clamp(values[name], -most, most), due), digits);
  },
  order({of: [other], made: [difference], is_above: isAbove, least}, values) {
    return roundTo(values[other] + (isAbove ? 1 : -1) * Math.max(values[difference], least), 9);
  },
  flags({flags, made: [category]}, values, name) {
    return Number.isNaN(values[category]) ? NaN : Number(values[category] === flags.indexOf(name));
  },
  ends({column, made: [category], ends, unit}, values) {
    const x = clamp(values[column], ends.length === 2 ? ends[0] + unit : -Infinity, ends.at(-1) - unit);
    return ends[values[category]] ?? x;
  },
  season({made, step}, values) {
    const [year, day, time = 0] = made.map((name) => values[name]), [start, next] = [year, year + 1].map((one) => new Date(0).setUTCFullYear(one, 0, 1) / 864e5);
    return start + clamp(day, 1, next - start) - 1 + clamp(time, 0, 1 - step);
  },
  levels: ({column, levels}, values) => levels[Math.trunc(values[column])] ?? NaN,
};
function toFile({steps, modelled, file}, x) { // a value for each column of the file
  const values = Object.fromEntries(modelled.map((column, d) => [column.name, rounded(column, x[d]) + column.origin]));
  const indicators = Object.fromEntries(steps.filter(({rule}) => rule === "empty").map(({column, made: [indicator]}) => [column, indicator]));
  for (const step of steps.toReversed()) {
    for (const name of step.of) if (values[indicators[name]] === 1) values[name] = NaN;
    for (const name of step.flags ?? [step.column]) values[name] = UNDO[step.rule](step, values, name);
  }
  return file.map(({name, origin}) => values[name] - origin);
}

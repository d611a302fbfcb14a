// The columns of a file, given those that are modelled: `recorded` of data/rules.py, to the last bit, and texts of `Column.text`.
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

function rounded({decimals, least, greatest, origin, step, date_format: format}, value) { // as `Column.rounded`
  if (Number.isNaN(value)) return value;
  if (format) {
    const days = step || microseconds(format) / 864e8;
    return rint((origin + value) / days) * days - origin;
  }
  const low = least ?? -Infinity, high = greatest ?? Infinity;
  let x = step && low > -Infinity ? low + step * rint((value - low) / step) : value;
  if (decimals === null || decimals > 8) return step ? Math.min(Math.max(x, low), high) : x;
  if (decimals === 0 || step) x = Math.min(Math.max(x, low), high);
  else if (low + origin > 0) x = Math.max(x, power(-decimals) - origin);
  else if (low + origin === 0) x = Math.max(x, low);
  if (low + origin >= 0 && high + origin <= 1) x = Math.min(x, 1 - origin);
  return toDigits(origin + x, decimals) - origin;
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

// By the kind of a rule: the column that it has rewritten, given those that it left; in the manner of `undo` in data/rule_kinds.py.
function known(levels, x) { // the nearest of them
  const all = (levels.sorted ||= Float64Array.from(new Set(levels)).sort());
  return Number.isNaN(x) ? x : all.find((one, i) => i === all.length - 1 || (one + all[i + 1]) / 2 >= x);
}
const withRest = ({made, most, decimals}, x, values) => roundTo(made.reduce((total, name) => total + clamp(values[name], -most, most), x), decimals);
const UNDO = {
  empty: ({column, made: [indicator]}, values) => (values[indicator] === 1 ? NaN : values[column]),
  same({of: [first, second], keys, seconds, found}, values) {
    const key = known(keys, values[first]), other = second && known(seconds, values[second]);
    return found[keys.findIndex((one, i) => one === key && (!second || seconds[i] === other))] ?? NaN;
  },
  threshold: ({of: [other], thresholds, found}, values) => (Number.isNaN(values[other]) ? NaN : found[thresholds.filter((one) => one < values[other]).length]),
  sum(rule, values) {
    const total = rule.of.reduce((before, name, i) => before + rule.factors[i] * values[name], rule.constant);
    return withRest(rule, roundTo(total, rule.decimals), values);
  },
  product(rule, values) {
    const [first, second] = rule.of.map((name) => values[name]), x = rule.is_ratio ? first / second : first * second;
    return withRest(rule, Number.isFinite(x) ? roundTo(x, rule.decimals) : NaN, values);
  },
  where: ({column, of: [other], lows, highs, value}, values) => (lows.some((low, i) => low <= values[other] && values[other] <= highs[i]) ? value : values[column]),
  ends({column, made: [category], ends, unit}, values) {
    const x = clamp(values[column], ends.length === 2 ? ends[0] + unit : -Infinity, ends.at(-1) - unit);
    return ends[values[category]] ?? x;
  },
  order({of: [other], made: [difference], is_above: isAbove, step, least}, values) {
    const sign = isAbove ? 1 : -1, places = (sign * (values[other] + sign * Math.max(values[difference], 0) - least)) / step;
    const x = least + sign * Math.ceil(places - 1e-3) * step;
    return roundTo(isAbove || least < 0 ? x : Math.max(x, 0), 9);
  },
  season({made, step}, values) {
    const [year, day, time = 0] = made.map((name) => values[name]), [start, next] = [year, year + 1].map((one) => Date.UTC(Math.trunc(one), 0) / 864e5);
    return start + clamp(day, 1, next - start) - 1 + clamp(time, 0, 1 - step);
  },
  levels: ({column, levels}, values) => levels[Math.trunc(values[column])] ?? NaN,
};
function recorded({rules, modelled, file}, x) { // a value for each column of the file
  const values = Object.fromEntries(modelled.map((column, d) => [column.name, rounded(column, x[d]) + column.origin]));
  const indicators = Object.fromEntries(rules.filter(({rule}) => rule === "empty").map(({column, made: [indicator]}) => [column, indicator]));
  for (const rule of rules.toReversed()) {
    for (const name of rule.of) if (values[indicators[name]] === 1) values[name] = NaN;
    values[rule.column] = UNDO[rule.rule](rule, values);
  }
  return file.map(({name, origin}) => values[name] - origin);
}

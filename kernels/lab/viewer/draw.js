// Drawing: only what lies in the window is painted, and nothing twice into the same column of pixels.

const LABELS = 250;  // pixels, for the rows' names
const FONT = '12px system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
const SMALL = '11px system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
const PLACE_COLOUR = {loading: "loading", full: "full", "being read": "read", read: "done", written: "written",
                      conflict: "conflict"};
const HATCHED = new Set(["wait", "conflict", "loading"]);

let colours = {};
let patterns = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["back", "panel", "text", "faint", "rule", "cursor", "band", "band-odd", "wait", "issue", "multiply",
                      "compute", "store", "loading", "full", "read", "done", "written", "conflict", "fault", "arrived",
                      "bytes", "mark"])
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  patterns = {};
}

// A colour, or the colour with stripes: waits, loads on their way and conflicts differ from the rest in more than hue.
function paint(context, name) {
  if (!HATCHED.has(name)) return colours[name];
  if (!patterns[name]) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 8;
    const inside = tile.getContext("2d");
    inside.fillStyle = colours[name];
    inside.fillRect(0, 0, 8, 8);
    inside.strokeStyle = name === "conflict" ? colours.text : colours.back;
    inside.globalAlpha = name === "conflict" ? 0.8 : 0.45;
    inside.lineWidth = name === "conflict" ? 1.5 : 2;
    inside.beginPath();
    const up = name !== "loading";
    for (const shift of [-8, 0, 8]) {
      inside.moveTo(shift, up ? 8 : 0);
      inside.lineTo(shift + 8, up ? 0 : 8);
    }
    inside.stroke();
    patterns[name] = context.createPattern(tile, "repeat");
  }
  return patterns[name];
}

// Black or white, whichever can be read on a colour.
function inkOn(name) {
  const hex = colours[name].replace("#", "");
  const [r, g, b] = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#111418" : "#ffffff";
}

// A canvas as large as its place on the screen, with a context whose unit is a CSS pixel.
function prepared(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = colours.back;
  context.fillRect(0, 0, width, height);
  context.textBaseline = "middle";
  return context;
}

// Text cut to a width; nothing if there is no room for three letters.
function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let length = text.length;
  while (length > 2 && context.measureText(`${text.slice(0, length)}\u2026`).width > width) --length;
  return length > 2 ? `${text.slice(0, length)}\u2026` : "";
}

class Scale {
  constructor(begin, end, width) {
    this.begin = begin;
    this.end = end;
    this.width = Math.max(1, width - LABELS);
  }
  x(step) { return LABELS + (step - this.begin) / (this.end - this.begin) * this.width; }
  step(x) { return this.begin + (x - LABELS) / this.width * (this.end - this.begin); }
}

// The distance of ticks: 1, 2 or 5 times a power of ten, at least 70 pixels.
function tickDistance(scale) {
  const least = 70 * (scale.end - scale.begin) / scale.width;
  const power = 10 ** Math.floor(Math.log10(Math.max(least, 1e-9)));
  return Math.max(1, [1, 2, 5, 10].find((times) => times * power >= least) * power);
}

function drawAxis(canvas, scale, whole, step) {
  const width = canvas.parentElement.clientWidth, height = 46;
  const context = prepared(canvas, width, height);
  const all = new Scale(0, whole, LABELS + scale.width);
  context.font = SMALL;
  context.fillStyle = colours.faint;
  context.fillText("whole run", 8, 10);
  context.fillText("scheduler steps", 8, 33);
  context.fillStyle = colours.band;
  context.fillRect(LABELS, 4, all.width, 12);
  context.fillStyle = colours.full;
  const left = all.x(scale.begin), right = Math.max(all.x(scale.end), left + 3);
  context.fillRect(left, 4, right - left, 12);
  context.fillStyle = colours.cursor;
  context.fillRect(all.x(step) - 0.5, 2, 1.5, 16);
  const distance = tickDistance(scale);
  context.strokeStyle = colours.rule;
  context.fillStyle = colours.faint;
  for (let at = Math.ceil(scale.begin / distance) * distance; at <= scale.end; at += distance) {
    const x = scale.x(at);
    context.fillRect(x, 40, 1, 6);
    const text = String(at), half = context.measureText(text).width / 2;
    if (x + half < LABELS + scale.width) context.fillText(text, Math.max(x - half, LABELS), 32);
  }
  const x = scale.x(step);
  if (x < LABELS - 1 || x > width + 1) return;
  const text = String(step), wide = context.measureText(text).width + 8;
  const begin = Math.min(Math.max(x - wide / 2, LABELS), width - wide);
  context.fillStyle = colours.cursor;
  context.fillRect(begin, 24, wide, 16);
  context.fillStyle = colours.back;
  context.fillText(text, begin + 4, 32.5);
}

// A box with a text in it, if there is room for one.
function box(context, x, end, y, height, name, text) {
  context.fillStyle = paint(context, name);
  context.fillRect(x, y, Math.max(end - x, 1), height);
  if (end - x < 26 || !text) return;
  context.font = SMALL;
  const words = fitted(context, text, end - x - 6);
  if (!words) return;
  if (HATCHED.has(name)) {
    context.fillStyle = colours[name];
    context.fillRect(x + 2, y + 1, context.measureText(words).width + 3, height - 2);
  }
  context.fillStyle = inkOn(name);
  context.fillText(words, x + 3, y + height / 2 + 0.5);
}

class Painter {
  constructor(cluster, context, scale, event) {
    Object.assign(this, {cluster, context, scale, event});
    this.right = LABELS + scale.width;
  }

  // Calls draw(begin x, end x, item) for the items in the window, each with the steps at which it begins and ends.
  visible(items, draw) {
    let drawn = -1;
    for (const [begin, end, item] of items) {
      if (end < this.scale.begin || begin > this.scale.end) continue;
      const from = Math.max(this.scale.x(begin), LABELS), to = Math.min(this.scale.x(end), this.right);
      if (to < drawn + 0.7) continue;
      drawn = to;
      draw(from, to, item);
    }
  }
  // The states of a barrier or a place with the steps from which and to which they hold.
  *held(states) {
    const {step, end} = this.cluster;
    for (let i = 0; i < states.length; ++i)
      yield [step[states[i][0]], i + 1 < states.length ? step[states[i + 1][0]] : end, states[i]];
  }

  warp(row, y) {
    const place = (span) => [span[5], span[6], span];
    this.visible(row.work.map(place), (x, end, span) =>
      box(this.context, x, end, y + 2, row.height - 11, span[3], span[3] === "wait" ? span[4] : span[3]));
    this.visible(row.tensor.map(place), (x, end) => {
      this.context.fillStyle = colours.multiply;
      this.context.fillRect(x, y + row.height - 7.5, Math.max(end - x - 1, 1), 5);
    });
    const here = this.cluster.step[this.event];
    const now = row.work.find((span) => span[5] <= here && here < span[6]);
    if (!this.cluster.ofWarp.get(`${row.block}/${row.warp}`).some((one) => one <= this.event)) return "not started";
    return now ? (now[3] === "wait" ? `waits: ${now[4]}` : now[3]) : "";
  }

  barrier(row, y) {
    const {barrier, most} = row, {context} = this, height = row.height - 4, bottom = y + row.height - 2;
    const phases = [];
    for (const [begin, end, state] of this.held(barrier.states)) {
      const last = phases[phases.length - 1];
      if (last && last[2] === state[1]) last[1] = end; else phases.push([begin, end, state[1]]);
    }
    this.visible(phases, (x, end, phase) => {
      context.fillStyle = colours[phase % 2 ? "band-odd" : "band"];
      context.fillRect(x, bottom - height, Math.max(end - x, 1), height);
    });
    this.visible(this.held(barrier.states), (x, end, [, , pending, bytes]) => {
      const high = barrier.count ? height * (barrier.count - pending) / barrier.count : 0;
      context.globalAlpha = 0.6;
      context.fillStyle = colours.arrived;
      context.fillRect(x, bottom - high, Math.max(end - x, 0.7), high);
      context.globalAlpha = 1;
      if (bytes > 0) {
        context.fillStyle = colours.bytes;
        context.fillRect(x, bottom - 2 - (height - 3) * bytes / most, Math.max(end - x, 0.7), 2);
      }
    });
    context.font = SMALL;
    this.visible(phases, (x, end, phase) => {
      context.fillStyle = colours.text;
      context.fillRect(x, bottom - height, 1, height);
      const middle = y + row.height / 2 + 0.5;
      if (end - x > 52) context.fillText(`phase ${phase}`, x + 5, middle);
      else if (end - x > 18) context.fillText(String(phase), x + 4, middle);
    });
    const state = this.cluster.stateAt(barrier.states, this.event);
    if (!state) return "";
    const [, phase, pending, bytes] = state;
    return `phase ${phase}, ${pending}/${barrier.count} pending` + (most ? `, ${bytes} B` : "");
  }

  place(row, y) {
    this.visible(this.held(row.place.states), (x, end, [, state, round]) =>
      box(this.context, x, end, y + 2, row.height - 4, PLACE_COLOUR[state], round ? `${state} ${round}` : state));
    const state = this.cluster.stateAt(row.place.states, this.event);
    return state ? `${state[1]}${state[2] ? ` (load ${state[2]})` : ""}` : "";
  }
}

// Paint one panel. `shown` are the rows from `top` on.
function drawPanel(canvas, size, cluster, scale, view) {
  const context = prepared(canvas, size.width, size.height);
  const painter = new Painter(cluster, context, scale, view.event);
  const step = view.step;
  cluster.rows.forEach((row, index) => {
    const y = row.top - view.top;
    if (y > size.height || y + row.height < 0) return;
    context.save();
    context.beginPath();
    context.rect(LABELS, y, scale.width, row.height);
    context.clip();
    let now = "";
    if (row.type !== "block") now = painter[row.type](row, y);
    context.restore();
    label(context, row, y, now, index === view.row);
  });
  marks(context, size, cluster, scale, view);
}

function label(context, row, y, now, current) {
  if (row.type === "block") {
    context.fillStyle = colours.panel;
    context.fillRect(0, y, 1e5, row.height);
    context.fillStyle = colours.text;
    context.font = `600 ${FONT}`;
    context.fillText(row.name, 8, y + row.height / 2 + 0.5);
    return;
  }
  if (current) {
    context.fillStyle = colours.mark;
    context.fillRect(0, y, LABELS - 4, row.height);
  }
  context.fillStyle = colours.rule;
  context.fillRect(0, y + row.height - 0.5, LABELS - 4, 0.5);
  context.font = FONT;
  context.fillStyle = colours.text;
  const name = row.role ? `${row.name}, ${row.role}` : row.name;
  const words = fitted(context, name, LABELS - 30), used = context.measureText(words).width;
  context.fillText(words, 16, y + row.height / 2);
  context.font = SMALL;
  context.fillStyle = colours.faint;
  const value = fitted(context, now, LABELS - 36 - used);
  context.fillText(value, LABELS - 10 - context.measureText(value).width, y + row.height / 2);
}

function marks(context, size, cluster, scale, view) {
  const inside = (x) => x >= LABELS - 1 && x <= size.width + 1;
  const height = Math.min(size.height, cluster.height - view.top);
  const middle = (row) => cluster.rows[row].top - view.top + cluster.rows[row].height / 2;
  const dot = (event, radius, draw) => {
    const x = scale.x(cluster.step[event]), row = cluster.rowOf(event);
    if (inside(x) && row >= 0) context.beginPath(), draw(x, middle(row), radius);
  };
  if (cluster.faulty) {
    const end = scale.x(cluster.end), x = Math.min(end, size.width - 2);
    if (inside(end)) {
      context.strokeStyle = colours.fault;
      context.lineWidth = 2;
      context.setLineDash([5, 3]);
      context.beginPath();
      context.moveTo(x, 0);
      context.lineTo(x, height);
      context.stroke();
      context.setLineDash([]);
      for (const event of cluster.stuck) cross(context, Math.min(x, size.width - 9), middle(cluster.rowOf(event)));
    }
  }
  for (const event of cluster.differs)
    dot(event, 6, (x, y, r) => {
      context.moveTo(x, y - r);
      context.lineTo(x + r, y);
      context.lineTo(x, y + r);
      context.lineTo(x - r, y);
      context.closePath();
      context.fillStyle = colours.fault;
      context.fill();
      context.strokeStyle = colours.back;
      context.lineWidth = 1.5;
      context.stroke();
    });
  const x = scale.x(view.step);
  if (inside(x)) {
    context.fillStyle = colours.cursor;
    context.fillRect(x - 0.5, 0, 1, height);
  }
  if (!view.active) return;
  const cause = cluster.cause[view.event];
  if (cause >= 0) {
    const from = [scale.x(cluster.step[cause]), middle(cluster.rowOf(cause))];
    const to = [x, middle(cluster.rowOf(view.event))];
    context.save();
    context.beginPath();
    context.rect(LABELS, 0, scale.width, size.height);
    context.clip();
    context.strokeStyle = colours.cursor;
    context.lineWidth = 1.2;
    context.beginPath();
    context.moveTo(...from);
    context.bezierCurveTo((from[0] + to[0]) / 2, from[1], (from[0] + to[0]) / 2, to[1], ...to);
    context.stroke();
    context.restore();
    dot(cause, 4, (cx, y, r) => {
      context.arc(cx, y, r, 0, 7);
      context.fillStyle = colours.back;
      context.fill();
      context.strokeStyle = colours.cursor;
      context.lineWidth = 1.5;
      context.stroke();
    });
  }
  dot(view.event, 5, (cx, y, r) => {
    context.arc(cx, y, r, 0, 7);
    context.fillStyle = colours.cursor;
    context.fill();
    context.strokeStyle = colours.back;
    context.lineWidth = 1.5;
    context.stroke();
  });
}

function cross(context, x, y) {
  for (const [colour, width] of [[colours.back, 6], [colours.fault, 3]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(x - 6, y - 6);
    context.lineTo(x + 6, y + 6);
    context.moveTo(x + 6, y - 6);
    context.lineTo(x - 6, y + 6);
    context.stroke();
  }
}

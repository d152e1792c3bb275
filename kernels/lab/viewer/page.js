// The page: which event the cursor is on, what the window shows, and what keys and the mouse do.

const byId = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};

const viewer = {
  panels: [],        // one for each run: {run, cluster, event, canvas, scroll, spacer, head}
  active: 0,         // the panel that keys act on
  begin: 0, end: 1,  // the window, in steps
  lanes: false,      // whether the events of every lane are stepped through
  get panel() { return this.panels[this.active]; },
  get whole() { return Math.max(1, ...this.panels.map((panel) => panel.cluster.end)) * 1.01; },
  get event() { return this.panel.event; },
  get sentence() { return this.panel.cluster.sentence(this.event); },
  where: (key) => viewer.panel.cluster.where(key, viewer.event),
};
window.viewer = viewer;

// ---- Moving

// Go to an event of the active panel; the other panel shows the same moment.
function select(event, reveal = true) {
  const {panel} = viewer, {cluster} = panel;
  panel.event = Math.min(Math.max(event, 0), cluster.size - 1);
  const step = cluster.step[panel.event];
  for (const other of viewer.panels) if (other !== panel) other.event = other.cluster.lastAt(step);
  if (reveal) {
    const width = viewer.end - viewer.begin;
    if (step < viewer.begin || step > viewer.end) show(step - width / 2, step + width / 2);
    const row = cluster.rows[cluster.rowOf(panel.event)];
    const {scrollTop, clientHeight} = panel.scroll;
    if (row.top < scrollTop || row.top + row.height > scrollTop + clientHeight)
      panel.scroll.scrollTop = row.top - clientHeight / 2;
  }
  update();
}
viewer.select = select;

const stops = () => viewer.lanes ? viewer.panel.cluster.everyEvent : viewer.panel.cluster.shown;

// The next stop (direction 1) or the one before (-1) that a test accepts; -1 if there is none.
function find(direction, accepts = () => true) {
  const list = stops();
  let at = countUpTo(list, viewer.event - (direction < 0 ? 1 : 0));
  at -= direction < 0 ? 1 : 0;
  for (; at >= 0 && at < list.length; at += direction) if (accepts(list[at])) return list[at];
  return -1;
}
function go(direction, accepts) {
  const found = find(direction, accepts);
  if (found >= 0) select(found);
  return found >= 0;
}
function goKind(direction) {
  const {cluster} = viewer.panel;
  const kind = byId("kind").value || cluster.kindOf(viewer.event);
  go(direction, (event) => cluster.kindOf(event) === kind);
}
function goRow(direction) {
  const {cluster} = viewer.panel, row = cluster.rowOf(viewer.event);
  go(direction, (event) => cluster.rowOf(event) === row);
}
function goCause() {
  const cause = viewer.panel.cluster.cause[viewer.event];
  if (cause >= 0) select(cause);
}
function goFault() {
  const index = viewer.panel.cluster.faulty ? viewer.active : viewer.panels.findIndex((one) => one.cluster.faulty);
  if (index < 0) return;
  activate(index);
  const {cluster} = viewer.panel;
  select(cluster.run.fault.warp !== null && cluster.stuck.length ? cluster.stuck[0] : cluster.size - 1);
}
function goDifference() {
  const {differs} = viewer.panel.cluster;
  if (differs.length) select(differs.find((event) => event > viewer.event) ?? differs[0]);
}
function goSearch(direction) {
  const query = byId("search").value.trim().toLowerCase();
  if (!query) return;
  const {cluster} = viewer.panel;
  const found = go(direction, (event) => {
    const place = cluster.lineOf(event);
    return `${cluster.who(event)} ${cluster.kindOf(event)} ${cluster.sentence(event)} ${place ? place.join(":") : ""}`
      .toLowerCase().includes(query);
  });
  byId("search").style.borderColor = found ? "" : "var(--fault)";
}
function activate(index) {
  viewer.active = index;
  viewer.panels.forEach((panel, at) => panel.element.classList.toggle("active", at === index));
  fillKinds();
}

// ---- The window

function show(begin, end) {
  const width = Math.min(Math.max(end - begin, 10), viewer.whole);
  viewer.begin = Math.min(Math.max(begin, 0), viewer.whole - width);
  viewer.end = viewer.begin + width;
}
function zoom(factor, around) {
  const centre = around ?? Math.min(Math.max(viewer.panel.cluster.step[viewer.event], viewer.begin), viewer.end);
  show(centre - (centre - viewer.begin) * factor, centre + (viewer.end - centre) * factor);
  draw();
}
function shift(share) {
  const by = share * (viewer.end - viewer.begin);
  show(viewer.begin + by, viewer.end + by);
  draw();
}
const plotWidth = () => viewer.panel.scroll.clientWidth;  // a panel may have a scroll bar beside it
const scaleOf = (width) => new Scale(viewer.begin, viewer.end, width);

function draw() {
  const step = viewer.panel.cluster.step[viewer.event];
  drawAxis(byId("axis"), scaleOf(plotWidth()), viewer.whole, step);
  viewer.panels.forEach((panel, index) => {
    const width = panel.scroll.clientWidth, height = panel.scroll.clientHeight;
    panel.cluster.layOut(height);
    panel.spacer.style.height = `${Math.max(panel.cluster.height + 8 - height, 0)}px`;
    const row = index === viewer.active ? panel.cluster.rowOf(panel.event) : -1;
    drawPanel(panel.canvas, {width, height}, panel.cluster, scaleOf(width),
              {event: panel.event, step, top: panel.scroll.scrollTop, row, active: index === viewer.active});
  });
}

// ---- What stands beside the timelines

function update() {
  fillNow();
  fillSource();
  fillWarps();
  fillEvents();
  draw();
}

function fillNow() {
  const {cluster} = viewer.panel, {event} = viewer, place = cluster.lineOf(event);
  const now = byId("now");
  now.replaceChildren();
  const number = `event ${event + 1} of ${cluster.size}`;
  now.append(make("p", "", `Step ${cluster.step[event]}, ${number}` + (place ? `, ${place.join(":")}` : "")));
  const said = make("p");
  said.append(make("b", "", cluster.who(event)), `: ${cluster.sentence(event)}`);
  now.append(said);
  const cause = cluster.cause[event];
  if (cause >= 0) {
    const why = make("p", "", "Cause: ");
    const link = make("a", "", `step ${cluster.step[cause]}, ${cluster.who(cause)}: ${cluster.sentence(cause)}`);
    link.onclick = () => select(cause);
    why.append(link);
    now.append(why);
  }
  if (cluster.differs.includes(event)) now.append(make("p", "fault", "Here this warp first differs from the other run."));
  if (!cluster.faulty || (cluster.step[event] !== cluster.end && !cluster.stuck.includes(event))) return;
  now.append(make("p", "fault", `The run ended in a fault: ${cluster.run.fault.text}`));
  for (const one of cluster.stuck) {
    if (one === event) continue;
    const line = make("p"), at = cluster.lineOf(one);
    const link = make("a", "", `${cluster.who(one)}, since step ${cluster.step[one]}: ${cluster.sentence(one)}`);
    link.onclick = () => select(one);
    line.append(link, at ? `, ${at.join(":")}` : "");
    now.append(line);
  }
}

function fillSource() {
  const {cluster} = viewer.panel, atFault = placeOfFault(cluster), place = atFault ?? cluster.lineOf(viewer.event);
  const panel = byId("source"), code = panel.querySelector(".code");
  const file = place ? place[0] : code.dataset.file || cluster.run.source;
  const key = `${viewer.active}/${cluster.cluster}/${file}`;
  if (code.dataset.key !== key) {
    code.dataset.key = key;
    code.dataset.file = file;
    panel.querySelector("h2").textContent = file;
    const used = new Set(cluster.lines.filter(([name]) => name === file).map(([, line]) => line));
    code.replaceChildren(...(data.files[file] || "The source text is not there.").split("\n").map((text, index) => {
      const line = make("div", used.has(index + 1) ? "has" : "");
      line.append(make("i", "", index + 1));
      const comment = text.indexOf("//");
      line.append(comment < 0 ? text : text.slice(0, comment));
      if (comment >= 0) line.append(make("em", "", text.slice(comment)));
      if (used.has(index + 1)) line.onclick = () => goLine(file, index + 1);
      return line;
    }));
  }
  code.querySelector(".current")?.classList.remove("current", "faulty");
  if (!place) return;
  const line = code.children[place[1] - 1];
  if (!line) return;
  line.classList.add("current");
  line.classList.toggle("faulty", atFault !== null);
  const top = line.offsetTop - code.offsetTop;
  if (top < code.scrollTop + 20 || top > code.scrollTop + code.clientHeight - 40)
    code.scrollTop = top - code.clientHeight / 2;
}
// Where the run ended in a fault: the file and the line at fault, or in a deadlock of a wait. Elsewhere null.
function placeOfFault(cluster) {
  if (!cluster.faulty) return null;
  const {fault} = cluster.run, named = /^(.*):(\d+)$/.exec(fault.line ?? "");
  if (fault.warp !== null && cluster.stuck.includes(viewer.event) && named) return [named[1], Number(named[2])];
  if (cluster.lineOf(viewer.event) || cluster.step[viewer.event] !== cluster.end) return null;
  return cluster.stuck.map((event) => cluster.lineOf(event)).find((place) => place) ?? null;
}
function goLine(file, line) {
  const {cluster} = viewer.panel;
  const there = (event) => {
    const place = cluster.lineOf(event);
    return place !== null && place[0] === file && place[1] === line;
  };
  if (!go(1, there)) {
    const first = stops().find(there);
    if (first !== undefined) select(first);
  }
}

function fillWarps() {
  const {cluster} = viewer.panel;
  const mine = cluster.thread[viewer.event] >= 0 ? cluster.warpKey(viewer.event) : "";
  const several = cluster.blocks.length > 1;
  byId("warps").querySelector(".rows").replaceChildren(...cluster.warps.map(([block, warp]) => {
    const key = `${block}/${warp}`, row = make("div", key === mine ? "current" : "");
    row.append(make("span", "who", several ? `b${block}, warp ${warp}` : `warp ${warp}`));
    row.append(make("span", "what", cluster.where(key, viewer.event)));
    row.onclick = () => {
      const list = cluster.ofWarp.get(key), last = countUpTo(list, viewer.event);
      if (list.length) select(list[Math.max(last - 1, 0)]);
    };
    return row;
  }));
}

function fillEvents() {
  const {cluster} = viewer.panel, list = stops(), at = countUpTo(list, viewer.event) - 1;
  const rows = byId("events").querySelector(".rows");
  const several = cluster.blocks.length > 1;
  rows.classList.toggle("several", several);
  const near = list.slice(Math.max(at - 100, 0), at + 100);
  if (!near.includes(viewer.event)) near.push(viewer.event), near.sort((a, b) => a - b);
  rows.replaceChildren(...near.map((event) => {
    const row = make("div", event === viewer.event ? "current" : "");
    const thread = cluster.thread[event];
    const where = [several ? `b${cluster.block[event]}` : "", thread < 0 ? "" : `warp ${thread >> 5}, lane ${thread & 31}`];
    row.append(make("span", "step", cluster.step[event]), make("span", "who", where.filter((one) => one).join(", ")),
               make("span", "what", cluster.sentence(event)));
    row.onclick = () => select(event);
    return row;
  }));
  const current = rows.querySelector(".current");
  rows.scrollTop = current.offsetTop - rows.offsetTop - rows.clientHeight / 2;
}

function fillKinds() {
  const {cluster} = viewer.panel, list = byId("kind"), before = list.value;
  list.replaceChildren(new Option("that of the cursor", ""), ...[...cluster.kinds].sort().map((kind) => new Option(kind, kind)));
  list.value = cluster.kinds.includes(before) ? before : "";
}

function fillLegend() {
  const entries = [["wait", "waits"], ["issue", "issues loads"], ["promote", "promotes"], ["store", "stores"],
                   ["multiply", "WGMMAs in flight"], ["loading", "loading"], ["full", "full"], ["read", "being read"],
                   ["done", "read"], ["written", "written"], ["conflict", "conflict"],
                   ["arrived", "arrivals in a phase"], ["bytes", "bytes to come"]];
  byId("legend").replaceChildren(...entries.map(([name, text]) => {
    const entry = make("span"), sample = document.createElement("canvas");
    const context = prepared(sample, 18, 11);
    context.globalAlpha = name === "arrived" ? 0.6 : 1;
    context.fillStyle = paint(context, name);
    context.fillRect(0, name === "bytes" ? 5 : 0, 18, name === "bytes" ? 2 : 11);
    entry.append(sample, text);
    return entry;
  }));
}

// ---- Panels

function addPanel(run, index) {
  const element = make("section", "panel"), head = make("div", "head");
  const scroll = make("div", "scroll"), canvas = document.createElement("canvas"), spacer = make("div");
  head.append(make("b", "", run.name));
  const clusters = run.clusters.map((raw) => new Cluster(raw, run));
  const panel = {run, clusters, cluster: clusters[0], event: 0, element, canvas, scroll, spacer};
  const about = make("span", "faint");
  if (clusters.length > 1) {
    const list = document.createElement("select");
    list.setAttribute("aria-label", "Cluster");
    clusters.forEach((cluster, at) => list.add(new Option(`cluster ${cluster.cluster}`, at)));
    panel.choose = (number) => {
      const at = clusters.findIndex((cluster) => cluster.cluster === number);
      if (at < 0) return;
      list.value = at;
      panel.cluster = clusters[at];
      panel.event = 0;
      adopt(panel, about);
    };
    list.onchange = () => {
      list.blur();
      const number = clusters[list.value].cluster;
      for (const one of viewer.panels) one.choose?.(number);
      activate(index);
      show(0, viewer.whole);
      select(0);
    };
    head.append(list);
  }
  head.append(about);
  if (run.fault) {
    const fault = make("a", "fault", `ended in a fault: ${run.fault.what}`);
    fault.title = run.fault.text;
    head.append(fault);
  }
  canvas.tabIndex = -1;
  scroll.append(canvas, spacer);
  element.append(head, scroll);
  byId("panels").append(element);
  scroll.onscroll = draw;
  head.onclick = (event) => {
    if (event.target.tagName === "SELECT") return;
    activate(index);
    if (event.target.className === "fault") goFault(); else update();
  };
  listen(panel, index);
  viewer.panels.push(panel);
  adopt(panel, about);
}
function adopt(panel, about) {
  const {cluster, run} = panel;
  about.textContent = `${cluster.size} events, ${cluster.end} steps` +
                      (run.left_out ? `; not in this page: ${run.left_out} other cluster${run.left_out > 1 ? "s" : ""}` : "");
}

// ---- The mouse

const tip = make("div");
tip.style.cssText = "position:fixed;pointer-events:none;z-index:5;padding:3px 7px;border-radius:4px;max-width:420px;" +
                    "font-size:12px;background:var(--panel);border:1px solid var(--rule);display:none";

function listen(panel, index) {
  const {canvas, scroll} = panel;
  let from = null;
  const placeOf = (event) => {
    const box = canvas.getBoundingClientRect();
    const y = event.clientY - box.top + scroll.scrollTop;
    const row = panel.cluster.rows.findIndex((one) => one.top <= y && y < one.top + one.height);
    return {x: event.clientX - box.left, row, step: scaleOf(scroll.clientWidth).step(event.clientX - box.left)};
  };
  canvas.onpointerdown = (event) => {
    from = {x: event.clientX, begin: viewer.begin, end: viewer.end, moved: false};
    canvas.setPointerCapture(event.pointerId);
  };
  canvas.onpointermove = (event) => {
    if (from) {
      const by = (from.x - event.clientX) / scaleOf(scroll.clientWidth).width * (from.end - from.begin);
      from.moved ||= Math.abs(event.clientX - from.x) > 4;
      if (from.moved) show(from.begin + by, from.end + by), draw();
    } else {
      hint(panel, placeOf(event), event);
    }
  };
  canvas.onpointerup = (event) => {
    const clicked = from && !from.moved;
    from = null;
    if (!clicked) return;
    const place = placeOf(event);
    activate(index);
    if (place.row >= 0) pick(panel, place);
  };
  canvas.onpointerleave = () => { tip.style.display = "none"; };
  canvas.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      zoom(event.deltaY > 0 ? 1.25 : 0.8, placeOf(event).step);
    } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      shift((event.deltaX || event.deltaY) / 1000);
    }
  }, {passive: false});
}

// Select the event of a row that is nearest to a step: what the row is about, or where its states change.
function pick(panel, {row, step}) {
  const {cluster} = panel, of = cluster.rows[row];
  let candidates;
  if (of.type === "barrier") candidates = of.barrier.states.map((state) => state[0]);
  else if (of.type === "place") candidates = of.place.states.map((state) => state[0]);
  else if (of.type === "warp")
    candidates = cluster.shown.filter((event) => cluster.block[event] === of.block && cluster.thread[event] >> 5 === of.warp);
  else candidates = cluster.shown;
  if (!candidates.length) candidates = cluster.shown;
  const after = countUpTo(candidates, step, (event) => cluster.step[event]);
  const near = [candidates[after - 1], candidates[after]].filter((event) => event !== undefined);
  near.sort((a, b) => Math.abs(cluster.step[a] - step) - Math.abs(cluster.step[b] - step));
  select(near[0], false);
}

function hint(panel, {row, step, x}, event) {
  const {cluster} = panel, of = cluster.rows[row];
  let text = "";
  if (of && x >= LABELS) {
    const last = cluster.lastAt(step);
    if (of.type === "warp") {
      const span = of.work.find((one) => one[5] <= step && step < one[6]);
      if (span)
        text = `${span[3] === "wait" ? `waits for ${span[4]}` : span[3]}: ${span[6] - span[5]} steps, ` +
               `${span[5]} to ${span[6]}`;
    } else if (of.type === "barrier") {
      const state = cluster.stateAt(of.barrier.states, last);
      if (state) text = `${of.barrier.name}: phase ${state[1]}, ${state[2]} of ${of.barrier.count} arrivals pending, ` +
                        `${state[3]} bytes to come`;
    } else if (of.type === "place") {
      const state = cluster.stateAt(of.place.states, last);
      if (state) text = `${of.name}, ${state[1]}: ${data.states[state[1]]}`;
    }
  } else if (of && of.type === "place") {
    text = of.place.boxes.map(([at, bytes]) => `0x${at.toString(16)}${bytes ? `, ${bytes} bytes` : ""}`).join("; ");
  } else if (of && of.type === "barrier") {
    text = `${of.barrier.name}, count ${of.barrier.count}`;
  }
  tip.style.display = text ? "block" : "none";
  tip.textContent = text;
  tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 8)}px`;
}

// The upper part of the axis moves the window, the lower one the cursor.
function scrub(event) {
  const axis = byId("axis"), box = axis.getBoundingClientRect();
  const x = event.clientX - box.left, width = plotWidth();
  if (axis.dataset.part === "window") {
    const centre = new Scale(0, viewer.whole, width).step(x), half = (viewer.end - viewer.begin) / 2;
    show(centre - half, centre + half);
    draw();
  } else {
    const {cluster} = viewer.panel, list = stops();
    const after = countUpTo(list, scaleOf(width).step(x), (one) => cluster.step[one]);
    select(list[Math.max(after - 1, 0)], false);
  }
}

// ---- Keys

function onKey(event) {
  const search = byId("search");
  if (event.target === search) {
    if (event.key === "Enter") goSearch(event.shiftKey ? -1 : 1);
    else if (event.key === "Escape") search.blur();
    return;
  }
  if (event.target.tagName === "SELECT" || byId("keys").open || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = {
    ArrowLeft: () => event.shiftKey ? goKind(-1) : go(-1),
    ArrowRight: () => event.shiftKey ? goKind(1) : go(1),
    ArrowUp: () => goRow(-1),
    ArrowDown: () => goRow(1),
    Home: () => select(stops()[0]),
    End: () => select(stops()[stops().length - 1]),
    "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2),
    0: () => { show(0, viewer.whole); draw(); },
    "[": () => shift(-0.25), "]": () => shift(0.25),
    "/": () => { search.focus(); search.select(); },
    "?": () => byId("keys").showModal(),
    c: goCause, f: goFault, d: goDifference, t: switchTheme,
    r: () => { activate((viewer.active + 1) % viewer.panels.length); update(); },
    l: () => { byId("lanes").checked = viewer.lanes = !viewer.lanes; update(); },
  };
  const action = keys[event.key] ?? keys[event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  action();
}

function switchTheme() {
  document.documentElement.classList.toggle("dark");
  readColours();
  fillLegend();
  draw();
}

function begin() {
  const asked = new URLSearchParams(location.search);  // ?theme=dark&event=120
  if (asked.get("theme") === "dark" || (!asked.has("theme") && matchMedia("(prefers-color-scheme: dark)").matches))
    document.documentElement.classList.add("dark");
  readColours();
  byId("title").textContent = data.runs.map((run) => run.name).join("  |  ");
  document.title = data.runs.map((run) => run.name).join(" | ");
  data.runs.forEach(addPanel);
  document.body.append(tip);
  byId("to-fault").hidden = !data.runs.some((run) => run.fault);
  byId("to-difference").hidden = !viewer.panels.some((panel) => panel.cluster.differs.length);
  const press = {back: () => go(-1), forward: () => go(1), "zoom-in": () => zoom(0.5), "zoom-out": () => zoom(2),
                 fit: () => { show(0, viewer.whole); draw(); }, "to-fault": goFault, "to-difference": goDifference,
                 theme: switchTheme, help: () => byId("keys").showModal()};
  for (const [id, action] of Object.entries(press)) byId(id).onclick = action;
  byId("lanes").onchange = (event) => { viewer.lanes = event.target.checked; event.target.blur(); update(); };
  byId("kind").onchange = (event) => event.target.blur();
  const axis = byId("axis");
  axis.onpointerdown = (event) => {
    axis.dataset.part = event.clientY - axis.getBoundingClientRect().top < 20 ? "window" : "cursor";
    axis.setPointerCapture(event.pointerId);
    axis.onpointermove = scrub;
    scrub(event);
  };
  axis.onpointerup = () => { axis.onpointermove = null; };
  document.addEventListener("keydown", onKey);
  window.addEventListener("resize", draw);
  fillLegend();
  activate(0);
  show(0, viewer.whole);
  const faulty = viewer.panels.some((panel) => panel.cluster.faulty);
  if (asked.has("event")) select(Number(asked.get("event")));
  else if (faulty) goFault();
  else select(0);
}
begin();

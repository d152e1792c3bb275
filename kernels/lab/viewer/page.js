// The page: which event the cursor is on, what the window shows, and what keys do.

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
  else say("No cause is known of this event. Landed loads, completed phases and passed waits have one.");
}
function goFault() {
  const index = viewer.panel.cluster.faulty ? viewer.active : viewer.panels.findIndex((one) => one.cluster.faulty);
  if (index < 0) return say("No run has a fault.");
  activate(index);
  const {cluster} = viewer.panel;
  select(cluster.run.fault.warp !== null && cluster.stuck.length ? cluster.stuck[0] : cluster.size - 1);
}
function goDifference() {
  const {differs} = viewer.panel.cluster;
  if (differs.length) return select(differs.find((event) => event > viewer.event) ?? differs[0]);
  say(viewer.panels.length < 2 ? "There is one run: lab view --against shows a second one, to compare it with."
                               : "The warps do the same in the same order in both runs, as far as both go.");
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
// What a key had no other answer to.
function say(text) {
  const said = byId("said");
  if (said.textContent === text) return;
  said.textContent = text;
  draw();  // it takes a line, and gives it back
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
    r: () => { if (viewer.panels.length < 2) return say("There is one run."); activate((viewer.active + 1) % viewer.panels.length); update(); },
    l: () => { byId("lanes").checked = viewer.lanes = !viewer.lanes; update(); },
  };
  say("");
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

// What stands beside the timelines: the event at the cursor, its source line, the warps, the events, the legend.

const byId = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};

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
  const entries = [["wait", "waits"], ["issue", "issues loads"], ["compute", "computes with accumulators"], ["store", "stores"],
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

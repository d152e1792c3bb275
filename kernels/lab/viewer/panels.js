// A panel for each run: its head, and what the mouse does in its timeline.

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

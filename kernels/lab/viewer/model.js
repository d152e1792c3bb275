"use strict";
// The events of the runs, and what they say of a moment. Python has made them (page.py); columns have one entry for
// each event, and an event is its index in them.

const data = JSON.parse(document.getElementById("data").textContent);

// How many entries of an increasing array are at most x.
function countUpTo(values, x, of = (value) => value) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (of(values[middle]) <= x) low = middle + 1; else high = middle;
  }
  return low;
}

class Cluster {
  constructor(raw, run) {
    Object.assign(this, raw);
    this.run = run;
    this.size = raw.step.length;
    this.end = raw.step[this.size - 1];
    this.faulty = run.fault !== null && run.fault.cluster === raw.cluster;
    this.everyEvent = Array.from({length: this.size}, (_, event) => event);
    this.rows = [];
    this.rowOfWarp = new Map();
    this.rowOfBarrier = new Map();
    this.makeRows();
    this.ofWarp = new Map(this.warps.map(([block, warp]) => [`${block}/${warp}`, []]));
    for (let event = 0; event < this.size; ++event)
      if (this.thread[event] >= 0) this.ofWarp.get(this.warpKey(event)).push(event);
    this.stuck = this.faulty ? this.stuckAt() : [];
  }

  makeRows() {
    const add = (row) => this.rows.push(row) - 1;
    for (const block of this.blocks) {
      add({type: "block", block, name: `block ${block}`, least: 20});
      for (const [of, warp, role] of this.warps) {
        if (of !== block) continue;
        const mine = this.spans.filter((span) => span[0] === block && span[1] === warp);
        this.rowOfWarp.set(`${block}/${warp}`, add({
          type: "warp", block, warp, name: `warp ${warp}`, role, least: 25,
          work: mine.filter((span) => !span[2]), tensor: mine.filter((span) => span[2]),
        }));
      }
      for (const barrier of this.barriers) {
        if (barrier.block !== block) continue;
        const most = barrier.states.reduce((so, state) => Math.max(so, state[3]), 0);
        const name = barrier.name.replace(/^(full|empty)( \d+) .*/, "$1$2").replace(/^mbarrier \((.*)\)$/, "$1");
        this.rowOfBarrier.set(`${block}/${barrier.address}`,
                              add({type: "barrier", block, name, barrier, most, least: 22}));
      }
      for (const place of this.places)
        if (place.block === block) add({type: "place", block, name: place.name, place, least: 19});
    }
    this.layOut(0);
  }

  // Give the rows their places. They grow, within limits, to fill the height that there is.
  layOut(height) {
    const least = this.rows.reduce((sum, row) => sum + row.least, 0);
    this.grown = Math.min(Math.max((height - 8) / least, 1), 1.5);
    let top = 0;
    for (const row of this.rows) {
      row.top = top;
      row.height = Math.floor(row.least * this.grown);
      top += row.height;
    }
    this.height = top;
  }

  // For each warp at fault, its last event: that of the thread at fault, or in a deadlock what each thread waits for.
  stuckAt() {
    const {fault} = this.run, found = [];
    for (const [key, events] of this.ofWarp) {
      const at = key === `${fault.block}/${fault.warp}`;
      if (fault.warp !== null ? !at : events.some((event) => this.kindOf(event) === "thread_exit")) continue;
      const last = new Map();
      for (const event of events) last.set(this.thread[event] & 31, event);
      const waiting = [...last.values()].filter((event) => this.waits(event));
      const event = at ? events[events.length - 1] : Math.min(...waiting);
      if (Number.isFinite(event) && event !== undefined) found.push(event);
    }
    return found;
  }

  kindOf(event) { return this.kinds[this.kind[event]]; }
  warpKey(event) { return `${this.block[event]}/${this.thread[event] >> 5}`; }
  lineOf(event) { return this.line[event] < 0 ? null : this.lines[this.line[event]]; }
  lastAt(step) { return Math.max(0, countUpTo(this.step, step) - 1); }

  sentence(event) {
    const kind = this.kindOf(event);
    const values = {kind, at: this.names[this.at[event]], value: this.value[event]};
    return (data.sentences[kind] ?? data.other).replace(/\{(\w+)\}/g, (_, name) => values[name]);
  }
  who(event) {
    const thread = this.thread[event];
    return `block ${this.block[event]}` + (thread < 0 ? "" : `, warp ${thread >> 5}, lane ${thread & 31}`);
  }

  // The row on which an event is marked.
  rowOf(event) {
    const block = this.block[event], address = this.address[event];
    if (this.thread[event] >= 0) return this.rowOfWarp.get(this.warpKey(event));
    const barrier = this.rowOfBarrier.get(`${block}/${address}`);
    if (barrier !== undefined && this.kindOf(event).startsWith("mbarrier")) return barrier;
    const holds = ([begin, bytes]) => begin <= address && address < begin + Math.max(bytes, 128);
    const place = this.rows.findIndex((row) => row.type === "place" && row.block === block &&
                                               row.place.boxes.some(holds));
    return place >= 0 ? place : this.rows.findIndex((row) => row.block === block);
  }

  // The state of a barrier or a place after an event, or undefined.
  stateAt(states, event) { return states[countUpTo(states, event, (state) => state[0]) - 1]; }

  // What the lanes of a warp do after an event, in a sentence: History.where of history.py, which says how.
  where(key, event) {
    const last = new Map();
    for (const one of this.ofWarp.get(key)) {
      if (one > event) break;
      last.set(this.thread[one] & 31, one);
    }
    if (!last.size) return "has not started";
    const groups = new Map();
    for (const [lane, one] of last) {
      const waits = this.waits(one);
      const group = waits ? `${this.kind[one]} ${this.address[one]} ${this.value[one]}` : "";
      if (!groups.has(group)) groups.set(group, {lanes: [], event: one, waits});
      const found = groups.get(group);
      found.lanes.push(lane);
      found.event = waits ? Math.min(found.event, one) : Math.max(found.event, one);
    }
    const found = [...groups.values()];
    const waiting = found.filter((group) => group.waits).sort((a, b) => b.lanes.length - a.lanes.length);
    const others = found.filter((group) => !group.waits && (group.lanes.includes(0) || !waiting.length));
    const said = [...waiting, ...others];
    return said.map((group) => {
      const one = group.event, kind = this.kindOf(one);
      let what = this.sentence(one);
      if (group.waits) {
        if (kind in data.arrives) what = "has arrived at the cluster barrier";
        what += `${this.outstanding(one, event)}, since step ${this.step[one]}`;
      } else if (kind === "thread_exit") {
        what = `has ended, at step ${this.step[one]}`;
      } else {
        what = `runs; last, at step ${this.step[one]}: ${what}`;
      }
      const alone = said.length === 1 || group.lanes.length === 32;
      return alone ? what : `${lanesText(group.lanes.sort((a, b) => a - b))}: ${what}`;
    }).join("; ");
  }
  waits(event) {
    const kind = this.kindOf(event);
    return kind in data.waits || kind in data.arrives;
  }
  outstanding(wait, event) {
    const row = this.rowOfBarrier.get(`${this.block[wait]}/${this.address[wait]}`);
    if (row === undefined || this.kindOf(wait) !== "mbarrier_wait") return "";
    const {barrier} = this.rows[row], state = this.stateAt(barrier.states, event);
    if (!state) return "";
    const [, phase, pending, bytes] = state;
    if (phase % 2 !== this.value[wait] % 2)
      return " (complete, but it has not run since)";
    return ` (it is in phase ${phase}, ${pending} of ${barrier.count} arrivals pending, ${bytes} bytes to come)`;
  }
}

function lanesText(lanes) {
  const runs = [];
  for (const lane of lanes) {
    if (runs.length && lane === runs[runs.length - 1][1] + 1) runs[runs.length - 1][1] = lane;
    else runs.push([lane, lane]);
  }
  if (runs.length > 3) return `${lanes.length} lanes`;
  const text = runs.map(([first, last]) => last > first ? `${first}-${last}` : `${first}`).join(", ");
  return `lane${lanes.length > 1 ? "s" : ""} ${text}`;
}

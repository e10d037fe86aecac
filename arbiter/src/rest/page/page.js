
"use strict";
const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const WINDOW = 600000;
// Told apart by colour and by dashes; readable on light and dark.
const COLOURS = ["#2f7fd1", "#c2571a", "#2c9c69", "#a85ac2", "#b08a00", "#c43d6b", "#4a8f9e", "#7a7f87"];
const DASHES = ["", "6 3", "2 2", "8 2 2 2", "", "6 3", "2 2", "8 2 2 2"];
let past = [], state = null, names = [], login = null, source = null;

// Names and sentences come out of etcd: they become text, never markup.
const text = (node, words) => { if (node.textContent !== words) node.textContent = words; };
function make(tag, words, kind) {
  const node = document.createElement(tag);
  if (words !== undefined) node.textContent = words;
  if (kind) node.className = kind;
  return node;
}
function cell(title, words, kind) {
  const node = make("td", undefined, kind);
  node.dataset.title = title;
  node.append(typeof words === "string" ? make("span", words) : words);
  return node;
}
function bytes(count) {
  if (typeof count !== "number") return "not known";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit + 1 < units.length) { count /= 1024; unit += 1; }
  return (unit ? count.toFixed(1) : count) + " " + units[unit];
}
const colour = (name) => { if (!names.includes(name)) names.push(name); return names.indexOf(name) % COLOURS.length; };
function page(url) {
  try {
    const link = new URL("/ui", url);
    return link.protocol === "http:" || link.protocol === "https:" ? link.href : null;
  } catch { return null; }
}

// The leader first, below it who streams from it, below those who streams from them.
function tree(members) {
  const leads = (member) => member.role === "leader" || member.role === "standby_leader";
  const named = new Set(members.map((member) => member.name));
  const above = (member) => {
    const wish = member.tags && member.tags.replicatefrom;
    return leads(member) ? null : named.has(wish) && wish !== member.name ? wish : "";
  };
  const rows = [], done = new Set();
  const add = (member, depth) => {
    if (done.has(member.name)) return;
    done.add(member.name);
    rows.push([member, depth]);
    members.filter((other) => above(other) === member.name).forEach((other) => add(other, Math.min(depth + 1, 3)));
  };
  members.filter(leads).forEach((member) => add(member, 0));
  members.filter((member) => above(member) === "").forEach((member) => add(member, 1));
  members.forEach((member) => add(member, 1));
  return rows;
}

function drawMembers() {
  const rows = tree(state.cluster.members).map(([member, depth]) => {
    const row = make("tr");
    const name = make("span", undefined, "step" + depth);
    const swatch = make("span", "", "swatch");
    swatch.style.background = COLOURS[colour(member.name)];
    name.append(swatch);
    const link = member.name !== state.node && page(member.api_url);
    if (link) { const to = make("a", member.name); to.href = link; name.append(to); } else name.append(member.name);
    if (member.name === state.node) name.append(" (this page)");
    const leads = member.role === "leader" || member.role === "standby_leader";
    const well = member.state === "running" || member.state === "streaming";
    row.append(
      cell("Member", name, leads ? "leads" : ""),
      cell("Role", member.role.replaceAll("_", " ") + (leads && !state.fresh ? ", when etcd last answered" : ""), leads ? "leads" : ""),
      cell("State", member.state + (member.pending_restart ? ", waits for a restart" : ""), well ? "ok" : "bad"),
      cell("Timeline", member.timeline === undefined ? "" : String(member.timeline)),
      cell("Behind", leads ? "" : bytes(member.lag)),
    );
    return row;
  });
  if (!rows.length) { const row = make("tr"); row.append(cell("Member", "nobody is there")); rows.push(row); }
  at("rows").replaceChildren(...rows);
  at("groups").hidden = !state.groups.length;
  at("group-rows").replaceChildren(...state.groups.map((group) => {
    const row = make("tr");
    row.append(cell("Group", (group.group === 0 ? "0, the coordinator" : String(group.group)) + (group.group === state.group ? " (this page)" : "")),
      cell("Leader", group.leader || "nobody", group.leader ? "" : "bad"),
      cell("Running", group.running + " of " + group.members, group.running === group.members ? "ok" : "bad"),
      cell("Critical faults", String(group.critical), group.critical ? "bad" : "ok"));
    return row;
  }));
}

function drawFaults() {
  const kinds = { critical: "bad", warning: "warn", notice: "quiet" };
  const rows = state.faults.map((fault) => {
    const row = make("li");
    row.append(make("strong", fault.severity + ": " + fault.subject, kinds[fault.severity]), " " + fault.sentence, make("span", "hint: " + fault.hint, "hint"));
    return row;
  });
  // What was read before etcd went away says nothing of now.
  if (!state.fresh) rows.unshift(make("li", rows.length ? "as of when etcd last answered:" : "not known while etcd does not answer; none when it last did", "warn"));
  at("faults").replaceChildren(...(rows.length ? rows : [make("li", "none", "ok")]));
  at("decisions").replaceChildren(...state.decisions.map((record) => {
    const row = make("li");
    const time = make("time", new Date(record.at).toLocaleTimeString(), "quiet");
    time.dateTime = record.at;
    row.append(time, " ", make("strong", record.duty), ": " + record.why, make("span", (record.leader ? record.leader + " leads in term " + record.term : "nobody leads") + "; " + record.postgres, "hint"));
    return row;
  }));
}

const left = (sample) => 300 * (1 - (past[past.length - 1].at - sample.at) / WINDOW);
function line(points, number) {
  const node = document.createElementNS(SVG, "polyline");
  node.setAttribute("points", points.map(([x, y]) => x.toFixed(1) + "," + y.toFixed(1)).join(" "));
  for (const [key, value] of [["fill", "none"], ["stroke", COLOURS[number]], ["stroke-width", "2"], ["stroke-dasharray", DASHES[number]], ["vector-effect", "non-scaling-stroke"]]) node.setAttribute(key, value);
  return node;
}
// Each series: [name, sample -> number or null]. A gap in the numbers is a gap in the line.
function chart(id, series, least, words) {
  const most = Math.max(least, ...past.flatMap((sample) => series.map(([, value]) => value(sample) || 0)));
  const lines = [];
  for (const [name, value] of series) {
    let run = [];
    for (const sample of past) {
      const number = value(sample);
      if (number === null || number === undefined) { if (run.length) lines.push(line(run, colour(name))); run = []; }
      else run.push([left(sample), 76 - 72 * number / most]);
    }
    if (run.length) lines.push(line(run, colour(name)));
  }
  at(id).replaceChildren(...lines);
  at(id).setAttribute("aria-label", words);
  text(at(id + "-now"), words);
}
function drawCharts() {
  if (!past.length) return;
  const now = past[past.length - 1];
  const of = (sample, name) => sample.members.find((member) => member[0] === name);
  const everybody = [...new Set(past.flatMap((sample) => sample.members.map((member) => member[0])))];
  const lag = everybody.map((name) => [name, (sample) => { const member = of(sample, name); return member ? member[1] : null; }]);
  const worst = Math.max(0, ...now.members.map((member) => member[1] || 0));
  chart("lag", lag, 1024, "most now " + bytes(worst));
  chart("lease", [[state.node, (sample) => sample.lease === null ? null : sample.lease / 1000]], state.ttl, now.lease === null ? "it does not lead" : (now.lease / 1000).toFixed(1));
  chart("etcd", [[state.node, (sample) => sample.etcd]], state.ttl, now.etcd === null ? "never answered" : String(now.etcd));
  const bands = [];
  // One band for each reign; a gap where nobody led.
  for (let first = 0, next; first < past.length; first = next) {
    const sample = past[first];
    for (next = first + 1; next < past.length && past[next].leader === sample.leader; next += 1);
    const from = left(sample), to = next < past.length ? left(past[next]) : 300;
    if (!sample.leader) continue;
    const band = document.createElementNS(SVG, "rect");
    for (const [key, value] of [["x", from], ["y", 8], ["width", Math.max(1, to - from)], ["height", 40], ["fill", COLOURS[colour(sample.leader)]]]) band.setAttribute(key, String(value));
    bands.push(band);
  }
  const timelines = past.map((sample) => Math.max(0, ...sample.members.map((member) => member[2] || 0)));
  const low = Math.min(...timelines), high = Math.max(...timelines, low + 1);
  bands.push(line(past.map((sample, index) => [left(sample), 76 - 20 * (timelines[index] - low) / (high - low)]), 7));
  at("reign").replaceChildren(...bands);
  const words = (now.leader || "nobody leads") + ", timeline " + timelines[timelines.length - 1];
  at("reign").setAttribute("aria-label", words);
  text(at("reign-now"), words);
  at("legend").replaceChildren(...everybody.map((name) => {
    const row = make("li"), swatch = make("span", "", "swatch");
    swatch.style.background = COLOURS[colour(name)];
    row.append(swatch, name);
    return row;
  }));
}

function draw() {
  if (!state || !state.cluster) return;
  const { cluster, status, sample } = state;
  const title = cluster.scope + (state.group === null ? "" : ", group " + state.group);
  text(at("title"), title);
  document.title = (state.faults.some((fault) => fault.severity === "critical") || !state.fresh ? "! " : "") + title + " - pg_tenure";
  const tenure = status.tenure || {};
  text(at("where"), "as " + state.node + " sees it" + (tenure.term ? ", term " + tenure.term : ""));
  const banner = at("banner");
  let said = "";
  if (!state.fresh) said = "etcd does not answer " + state.node + (sample.etcd === null ? "" : "; it last did " + sample.etcd + " s ago, and what stands here is of then") + ". " + (status.failsafe_mode_is_active ? "Writes go on by the members' promises (failsafe_mode)." : tenure.why || "");
  else if (!sample.leader) said = "Nobody leads: no member takes writes.";
  else if (cluster.pause) said = "Maintenance mode is on: nobody takes over by itself.";
  else if (cluster.scheduled_switchover) said = "A switchover is planned for " + cluster.scheduled_switchover.at + ".";
  banner.hidden = !said;
  text(banner, said);
  banner.classList.toggle("quiet", state.fresh && !!sample.leader);
  drawMembers();
  drawFaults();
  drawCharts();
  const standbys = cluster.members.filter((member) => member.role !== "leader" && member.role !== "standby_leader" && member.state !== "lost");
  at("switchover").disabled = !sample.leader || !standbys.length;
  text(at("pause"), cluster.pause ? "Resume" : "Pause");
  at("reinit").disabled = !state.standby || !sample.leader;
}

// What is changed is asked first. The password is kept by this page alone, and sent by it alone: a browser that knew it would send it for others too.
let doing = null;
function ask(title, words, choices, act) {
  doing = act;
  text(at("ask-title"), title);
  text(at("ask-text"), words);
  text(at("ask-error"), "");
  at("ask-choice").hidden = !choices.length;
  at("candidate").replaceChildren(...choices.map((name) => { const option = make("option", name); option.value = name; return option; }));
  at("ask-yes").disabled = false;
  at("ask").showModal();
  at("ask-no").focus();
}
async function send(method, path, body) {
  const headers = { "Content-Type": "application/json" };
  if (login) headers.Authorization = "Basic " + btoa(String.fromCharCode(...new TextEncoder().encode(login)));
  const answer = await fetch(path, { method, headers, body: JSON.stringify(body), credentials: "omit", cache: "no-store" });
  return [answer.status, await answer.text(), answer.headers.get("x-tenure-reason")];
}
at("ask-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!at("ask-login").hidden) login = at("user").value + ":" + at("password").value;
  at("ask-yes").disabled = true;
  text(at("ask-error"), "");
  try {
    const [status, words, reason] = await doing(at("candidate").value);
    if (status === 401) {
      at("ask-login").hidden = false;
      if (login) text(at("ask-error"), words);
      at("user").focus();
    } else if (status >= 400) text(at("ask-error"), words + (reason ? ": " + reason : ""));
    else { at("ask").close(); text(at("done"), words.startsWith("{") ? "done" : words); }
  } catch (failure) { text(at("ask-error"), "it could not be asked: " + failure.message); }
  at("ask-yes").disabled = false;
});
at("ask-no").addEventListener("click", () => at("ask").close());
at("switchover").addEventListener("click", () => {
  const leader = state.sample.leader;
  const choices = state.cluster.members.filter((member) => member.name !== leader && member.state !== "lost").map((member) => member.name);
  ask("Switch over from " + leader + "?", "Writers wait for a moment, and their connections end. The old leader stays as a standby.", choices,
    (candidate) => send("POST", "/switchover", { leader, candidate }));
});
at("pause").addEventListener("click", () => {
  const on = !state.cluster.pause;
  ask(on ? "Switch maintenance mode on?" : "Switch maintenance mode off?", on ? "While it is on, nobody takes over if the leader fails." : "From then on failures are handled again.", [],
    () => send("PATCH", "/config", { pause: on ? true : null }));
});
at("reinit").addEventListener("click", () => ask("Make the data of " + state.node + " again?", "Its data are copied again. Where there is room the old ones stay beside the copy until it streams. Until then this member can't take over.", [], () => send("POST", "/reinitialize", {})));

function connect() {
  source = new EventSource("/ui/events");
  source.addEventListener("past", (event) => { past = JSON.parse(event.data); draw(); });
  source.addEventListener("state", (event) => {
    state = JSON.parse(event.data);
    if (!state.sample) return;
    const last = past[past.length - 1];
    if (!last || state.sample.at > last.at) past.push(state.sample);
    while (past.length && past[past.length - 1].at - past[0].at > WINDOW) past.shift();
    text(at("connection"), "live");
    at("connection").className = "pill ok";
    draw();
  });
  source.onerror = () => {
    text(at("connection"), "no connection to this node; what stands here is old");
    at("connection").className = "pill bad";
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
  };
}
connect();

// The status page. It reads /events by fetch – so that a key goes into a header, never into a URL – and builds the
// page from text nodes alone: whatever an engine or a client calls itself is text.

const KEPT_S = 3600;
// Of what is longer ago than this, a point in five seconds is enough, as the router keeps them.
const CLOSE_S = 600;
const EVERY_S = 5;
const KEPT_POINTS = 1500;
// Where nobody has read memory for so long, nothing is drawn.
const GAP_S = 60;
const KEPT_REQUESTS = 50;
const KEPT_SWAPS = 12;
const STEPS = ["draining", "freeing", "settling", "starting"];
const BUSY = new Set(STEPS);
const HEALTH = {
  degraded: "a part of it is passed over: routerctl health",
  unhealthy: "nothing of it is served: routerctl health says why",
  unconfigured: "its key is not set",
};

const $ = (id) => document.getElementById(id);
// Times of memory and swaps are the router's; `ahead` is this clock's distance from it, in seconds.
let points = [];
let ahead = 0;
const swaps = [];
const requests = [];
const marks = [];
let key = sessionStorage.getItem("enginerouter-key") ?? "";
let mayControl = true;
let notice = null;
let stream = new AbortController();

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((c) => c !== null && c !== undefined && c !== ""));
  return made;
}

function seconds(value) {
  if (value === null || value === undefined) return "";
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 60) return `${Math.round(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
}

// A guess has no tenths.
const about = (value) => (value === null || value === undefined ? "" : value < 10 ? `${Math.ceil(value)} s` : seconds(value));
const ms = (value) => (value === null || value === undefined ? "" : value < 10000 ? `${value} ms` : seconds(value / 1000));
const gib = (bytes) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
const clock = (at) => new Date(at * 1000).toLocaleTimeString();

// Rebuilding a list under somebody's finger or keyboard would take the button away: what did not change stays.
function keyed(list, items, keyOf, build) {
  const there = new Map([...list.children].map((child) => [child.dataset.key, child]));
  const wanted = items.map((item) => {
    const id = keyOf(item);
    const said = JSON.stringify(item);
    const old = there.get(id);
    if (old && old.dataset.said === said) return old;
    const made = build(item);
    made.dataset.key = id;
    made.dataset.said = said;
    if (old?.contains(document.activeElement)) {
      const name = document.activeElement.dataset.action;
      queueMicrotask(() => made.querySelector(`[data-action="${name}"]`)?.focus());
    }
    return made;
  });
  if (wanted.length !== list.children.length || wanted.some((child, i) => list.children[i] !== child)) {
    list.replaceChildren(...wanted);
  }
}

// --- asking

function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function command(path, body, doing) {
  say(doing);
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: { ...headers(), "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const found = await answer.json();
    if (!answer.ok) say(found.error?.message ?? `${path} answered ${answer.status}`, true);
    if (answer.status === 403) mayControl = false;
  } catch {
    say("the router does not answer", true);
  }
}

function say(text, isBad = false) {
  notice = text ? { text, isBad, until: Date.now() + 8000 } : null;
  showBanner(null);
}

// --- showing

function showBanner(swap) {
  const banner = $("banner");
  if (notice && Date.now() > notice.until) notice = null;
  const running = swap
    ? `Swap to ${swap.target ?? "nothing"}: ${swap.step} for ${seconds(swap.step_s)}, ${seconds(swap.total_s)} in all`
    : "";
  // What runs says more than what was asked for; an error stays until it was read.
  const text = notice?.isBad ? notice.text : running || (notice?.text ?? "");
  banner.hidden = !text;
  banner.classList.toggle("bad", Boolean(notice?.isBad));
  if (banner.textContent !== text) banner.textContent = text;
}

function showStatus(status) {
  $("summary").textContent = `version ${status.version}, up ${seconds(status.uptime_s)}`;
  showBanner(status.swaps[0] ?? null);
  if (status.hold && !notice) {
    const free = status.hold.is_free ? "is kept free" : "is being freed";
    $("banner").hidden = false;
    $("banner").textContent = `Memory ${free} for ${status.hold.owner}`;
  }
  showMemory(status.memory);
  keyed($("engines"), status.slots.map((slot) => cardOf(slot, status.health)), (card) => card.slot, buildCard);
  const waiting = status.slots.filter((slot) => slot.queued);
  keyed($("queue"), waiting.length ? waiting.map(waitOf) : [null], (wait) => wait?.slot ?? "", buildWait);
}

// What a card shows, and no more: figures that change each second would rebuild it each second.
function cardOf(slot, health) {
  const facts = [];
  if (slot.in_flight) facts.push(`${slot.in_flight} in flight`);
  if (slot.queued) facts.push(`${slot.queued} waiting`);
  if (slot.is_pinned) facts.push("pinned");
  if (slot.phase === "cold" && slot.learned?.start_s) facts.push(`starts in about ${about(slot.learned.start_s)}`);
  if (slot.learned?.held_bytes) facts.push(`${slot.phase === "cold" ? "takes" : "holds"} ${gib(slot.learned.held_bytes)}`);
  const circuit = slot.start_circuit;
  const standing = health[slot.engine] ?? "healthy";
  return {
    health: standing === "healthy" ? "" : standing, isRemote: slot.is_remote,
    slot: slot.slot, engine: slot.engine, models: slot.models, phase: slot.phase, facts: facts.join(" · "),
    problem: circuit ? `${circuit.failures} failed ${circuit.failures === 1 ? "start" : "starts"}${circuit.reason ? `: ${circuit.reason}` : ""}` : "",
    may: mayControl,
  };
}

function buildCard(card) {
  const target = card.models.length ? { model: card.models[0] } : { engine: card.engine };
  const load = element("button", "", "Load");
  load.dataset.action = "load";
  load.disabled = !card.may || card.phase === "ready" || BUSY.has(card.phase);
  load.setAttribute("aria-label", `Load ${card.slot}`);
  load.addEventListener("click", () => command("admin/swap?wait=0", target, `Loading ${card.slot} …`));
  const unload = element("button", "", "Unload");
  unload.dataset.action = "unload";
  unload.disabled = !card.may || card.phase !== "ready" || card.isRemote;
  unload.setAttribute("aria-label", `Unload ${card.slot}`);
  unload.addEventListener("click", () => command("admin/unload", target, `Unloading ${card.slot} …`));
  const models = card.models.filter((model) => model !== card.slot).join(", ");
  return element(
    "li", `card ${card.phase} ${card.health}`,
    element("p", "name", element("span", "", card.slot), element("span", "phase", standingOf(card))),
    element("p", "facts", [models, card.facts].filter(Boolean).join(" · ")),
    card.problem ? element("p", "problem", card.problem) : null,
    card.health ? element("p", "problem", HEALTH[card.health] ?? "") : null,
    element("p", "buttons", load, unload),
  );
}

// A provider is always "ready": what counts is whether it answers.
function standingOf(card) {
  return [card.isRemote && card.health ? "" : card.phase, card.health].filter(Boolean).join(", ");
}

function waitOf(slot) {
  const models = slot.models.filter((model) => model !== slot.slot).join(", ");
  return {
    slot: slot.slot, models, queued: slot.queued, eta: about(slot.eta_s),
    // Only an admin key is told; without keys all are the same.
    keys: (slot.waiting ?? []).filter((who) => who.key !== "local").map((who) => ({ ...who, longest_s: Math.floor(who.longest_s) })),
  };
}

function buildWait(wait) {
  if (!wait) return element("li", "quiet", "Nobody waits.");
  const eta = wait.eta ? `, ready in about ${wait.eta}` : "";
  const models = wait.models ? ` (${wait.models})` : "";
  const who = wait.keys.map(({ key, count, longest_s }) => `${key}: ${count}, for ${longest_s} s`).join(" · ");
  return element("li", "", `${wait.queued} for ${wait.slot}${models}${eta}`, who ? element("p", "quiet", who) : null);
}

function showMemory(memory) {
  const now = memory.available_bytes;
  $("memory-now").textContent = now === null ? "not read" : gib(now);
  $("memory-why").textContent = now === null ? `${memory.source}: ${memory.problem ?? memory.why}` : `read from ${memory.source}`;
  if (now === null) return;
  points.push({ at: Date.now() / 1000 - ahead, bytes: now });
  points = points.filter((p) => p.at >= points.at(-1).at - KEPT_S);
  if (points.length > KEPT_POINTS) thinOut();
  drawMemory();
}

function thinOut() {
  let kept = -Infinity;
  const close = points.at(-1).at - CLOSE_S;
  points = points.filter(({ at }) => {
    if (at < close && at - kept < EVERY_S) return false;
    kept = at;
    return true;
  });
}

function drawMemory() {
  if (!points.length) return;
  const [first, last] = [points[0].at, points.at(-1).at];
  while (marks.length && marks[0] < first) marks.shift();
  const top = Math.max(...points.map((p) => p.bytes)) * 1.05 || 1;
  const x = (at) => (last === first ? 600 : ((at - first) / (last - first)) * 600).toFixed(1);
  const y = (bytes) => (138 - (bytes / top) * 134).toFixed(1);
  const runs = [];
  for (const point of points) {
    const run = runs.at(-1);
    if (run && point.at - run.at(-1).at <= GAP_S) run.push(point);
    else runs.push([point]);
  }
  const lines = runs.map((run) => run.map((p) => `${x(p.at)},${y(p.bytes)}`).join(" L"));
  const areas = runs.map((run, i) => `M${x(run[0].at)},140 L${lines[i]} L${x(run.at(-1).at)},140 Z`);
  const shapes = [
    shape("path", { class: "area", d: areas.join(" ") }),
    shape("path", { class: "curve", d: lines.map((line) => `M${line}`).join(" ") }),
    ...marks.map((at) => shape("path", { class: "mark", d: `M${x(at)},0 V140` })),
  ];
  $("memory").replaceChildren(...shapes);
  const dashed = shapes.length > 2 ? "; dashed: swaps" : "";
  $("memory-span").textContent = last === first ? "" : `0 to ${gib(top)}, the last ${seconds(Math.round(last - first))}${dashed} · `;
}

function shape(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function buildSwap(swap) {
  const freed = (swap.freed ?? []).filter((slot) => slot !== swap.target).join(", ");
  const what = swap.target === "none" ? `${freed} unloaded` : swap.target + (freed && ` in place of ${freed}`);
  const settle = swap.settle ? `, memory ${swap.settle}` : "";
  const parts = Object.entries(swap.seconds).filter(([, value]) => value > 0);
  const total = parts.reduce((sum, [, value]) => sum + value, 0);
  const bar = element("div", "bar");
  bar.dataset.total = String(total);
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", parts.map(([step, value]) => `${step} ${seconds(value)}`).join(", "));
  for (const [step, value] of parts) {
    const piece = element("span", STEPS.includes(step) ? `step-${step}` : "step-checking");
    piece.style.flexGrow = String((100 * value) / total);
    piece.title = `${step} ${seconds(value)}`;
    bar.append(piece);
  }
  const result = swap.result === "ok" ? "" : ` ${swap.result}`;
  return element(
    "li", "",
    element(
      "div", "swap-head",
      element("span", "", `${clock(swap.at)} – ${what}`, element("b", "bad", result)),
      element("span", "result", `${seconds(swap.total_s)}${settle}`),
    ),
    bar,
    swap.error ? element("p", "problem", swap.error) : null,
  );
}

// A swap twice as long is twice as wide; the shortest can still be seen.
function scaleSwaps() {
  const bars = [...document.querySelectorAll("#swaps .bar")];
  const longest = Math.max(...bars.map((bar) => Number(bar.dataset.total)));
  for (const bar of bars) bar.style.width = `${Math.max(4, (100 * Number(bar.dataset.total)) / longest)}%`;
}

// On a phone a row is a small card, and each cell says what it is.
function cell(name, className, text) {
  const made = element("td", className, text);
  made.dataset.name = name;
  return made;
}

function buildRequest(request) {
  const failed = request.status >= 400;
  const status = cell("Status", failed ? "status bad" : "status", String(request.status));
  if (request.error) status.append(element("span", "why", request.error));
  return element(
    "tr", "",
    cell("Time", "time", clock(request.at)),
    cell("Model", "name", request.model || "–"),
    cell("Served by", "name", request.target || "–"),
    status,
    cell("Waited", "number", request.queue_ms ? ms(request.queue_ms) : ""),
    cell("First byte", "number", ms(request.first_byte_ms)),
    cell("Total", "number", ms(request.total_ms)),
    cell("tok/s", "number", request.tok_s ? String(request.tok_s) : ""),
  );
}

const on = {
  status: showStatus,
  memory_history(history) {
    ahead = Date.now() / 1000 - history.at;
    points = history.points.map(([at, bytes]) => ({ at, bytes }));
    drawMemory();
  },
  phase: () => {},
  swap(swap) {
    swaps.unshift(swap);
    swaps.length = Math.min(swaps.length, KEPT_SWAPS);
    // A swap that is remembered comes again with each connection.
    if (points.length && swap.at >= points[0].at && !marks.includes(swap.at)) marks.push(swap.at);
    keyed($("swaps"), swaps, (s) => `${s.at} ${s.target}`, buildSwap);
    scaleSwaps();
  },
  request(request) {
    requests.unshift(request);
    requests.length = Math.min(requests.length, KEPT_REQUESTS);
    keyed($("requests"), requests, (r) => r.id, buildRequest);
  },
};

// --- the stream

function connection(text, state) {
  $("connection").textContent = text;
  $("connection").className = `badge ${state}`;
}

async function read(answer) {
  const decoder = new TextDecoderStream();
  const reader = answer.body.pipeThrough(decoder).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const frames = text.split("\n\n");
    text = frames.pop();
    for (const frame of frames) {
      const name = /^event: (.*)$/m.exec(frame)?.[1];
      const data = /^data: (.*)$/m.exec(frame)?.[1];
      if (name && data) on[name]?.(JSON.parse(data));
    }
  }
}

async function askForKey(why) {
  $("key-why").textContent = why;
  const dialog = $("key-dialog");
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  const typed = $("key").value;
  $("key").value = "";
  if (!typed) return;
  key = typed;
  sessionStorage.setItem("enginerouter-key", key);
  mayControl = true;
}

async function otherKey() {
  await askForKey("One that may load and unload, say. It stays in this tab and is sent only to this router.");
  stream.abort();
}

async function watch() {
  for (;;) {
    try {
      stream = new AbortController();
      const answer = await fetch("events", { headers: headers(), cache: "no-store", signal: stream.signal });
      if (answer.status === 401) {
        connection("no key", "lost");
        const stays = "It stays in this tab and is sent only to this router.";
        await askForKey(key ? `That key was not accepted. ${stays}` : stays);
        continue;
      }
      if (!answer.ok) throw new Error(String(answer.status));
      connection("live", "live");
      $("other-key").hidden = !key;
      requests.length = swaps.length = 0;
      await read(answer);
    } catch (error) {
      console.debug("events ended", error);
    }
    if (stream.signal.aborted) continue;
    connection("connection lost, trying again …", "lost");
    await new Promise((resolve) => setTimeout(resolve, 1500));
  }
}

$("legend").append(
  ...STEPS.map((step) => element("span", "", element("i", `step-${step}`), step)),
);
$("other-key").addEventListener("click", otherKey);
watch();

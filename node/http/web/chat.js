// The node's page: its swarm at a glance, and a chat that streams from this node's own /v1/chat/completions.
// What comes from outside (names, replies) is only ever set as text, never as HTML.

import { failure, keep, key, withKey } from "/web/key.js";

const at = (id) => document.getElementById(id);
const made = (tag, cls, text) => Object.assign(document.createElement(tag), { className: cls, textContent: text ?? "" });

const EVERY = 5000;
const SILENCE = 120000; // Without a byte for so long a stream is taken for dead.
const history = [];
let chosen = null;
let shown = null;
let running = null;

async function ask(path) {
  const reply = await fetch(path, { headers: withKey() }).catch(() => { throw new Error("this node doesn't answer"); });
  if (!reply.ok) throw await failure(reply);
  const body = await reply.json();
  return body.data ?? body;
}

function size(bytes) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
  return `${(bytes / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

// The key

function showKeys(open, why) {
  at("key-panel").hidden = !open;
  at("keys").setAttribute("aria-expanded", String(open));
  at("key-title").textContent = why ? "This node wants a key" : "API key";
  at("key-drop").hidden = !key();
  at("key-error").hidden = !(why && key());
  at("key-error").textContent = `The key isn't taken: ${why ?? ""}.`;
  at("keys").textContent = key() && !why ? "Key in use" : "Key";
}

function refused(error) {
  at("state").textContent = key() ? "the key isn't taken" : "a key is needed";
  at("state").className = "bad";
  at("models").replaceChildren(made("li", "soft", "They are shown once there is a key."));
  for (const id of ["alive", "count", "peer"]) at(id).textContent = "–";
  idle("This node answers who has a key: give one above.");
  if (at("key-panel").hidden) showKeys(true, error.message), at("key").focus({ preventScroll: true });
}

at("keys").onclick = () => showKeys(at("key-panel").hidden);
at("key-form").onsubmit = (event) => {
  event.preventDefault();
  keep(at("key").value);
  at("key").value = "";
  showKeys(false);
  refresh();
};
at("key-drop").onclick = () => (keep(""), showKeys(false), refresh());

// Models

function idle(why) {
  chosen = shown = null;
  history.length = 0;
  at("title").textContent = "Chat";
  at("send").disabled = at("prompt").disabled = true;
  at("talk").replaceChildren(made("p", "soft empty", why));
}

function choose(id, label) {
  if (running) return;
  if (chosen !== id) history.length = 0, at("talk").replaceChildren(made("p", "soft empty", `Ask ${label} something. It answers from the nodes that hold it.`));
  chosen = id;
  shown = label;
  at("title").textContent = `Chat with ${label}`;
  at("send").disabled = at("prompt").disabled = false;
  for (const button of document.querySelectorAll(".model")) button.setAttribute("aria-pressed", button.dataset.name === label);
}

function durability(model) {
  const losses = model.storage.survives_losses;
  if (losses == null) return made("span", "soft", "durability unknown");
  if (losses < 0) return made("span", "bad", "not readable now");
  const text = losses ? `survives ${losses} ${losses === 1 ? "loss" : "losses"}` : "survives no loss yet";
  return made("span", losses ? "soft good" : "soft", text);
}

function modelButton(model) {
  const label = model.name ?? model.id;
  const button = made("button", "model");
  button.type = "button";
  button.dataset.name = label;
  button.append(made("b", "", label), made("span", "soft", `${size(model.size_bytes)}${model.private ? " · private" : ""} · `), durability(model));
  button.setAttribute("aria-pressed", label === shown);
  button.onclick = () => choose(model.id, label);
  const row = document.createElement("li");
  row.append(button);
  return row;
}

const writes = (model) => model.category !== "text-classification" && model.category !== "feature-extraction";

function showModels(list) {
  const rows = list.models.map(modelButton);
  if (list.pagination.has_next) rows.push(made("li", "soft", `and ${list.pagination.total_models - list.models.length} more: see the API`));
  at("models").replaceChildren(...(rows.length ? rows : [made("li", "soft", "None yet.")]));
  if (!rows.length && !running && !history.length) idle("No model is known here yet. Publish one with mf-node publish, or join a swarm with mf-node join.");
  const first = list.models.find(writes) ?? list.models[0];
  if (!chosen && first) choose(first.id, first.name ?? first.id);
}

async function refresh() {
  try {
    const [swarm, list, health] = await Promise.all([ask("/api/v1/system/swarm"), ask("/api/v1/models?limit=100"), ask("/health")]);
    at("peer").textContent = swarm.peer_id ?? "";
    at("alive").textContent = swarm.peers_alive;
    at("count").textContent = list.pagination.total_models;
    at("state").textContent = health.status ?? "";
    at("state").className = health.status === "healthy" ? "good" : "bad";
    at("state").title = health.reason ?? "";
    showModels(list);
  } catch (error) {
    if (error.status === 401 || error.status === 403 || error.status === 421) return refused(error);
    at("state").textContent = error.message;
    at("state").className = "bad";
  }
}

// The chat

// Lines of an event stream, comments included; fails when nothing comes for too long.
async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let timer;
    const silent = new Promise((_, fail) => { timer = setTimeout(fail, SILENCE, new Error("nothing came for two minutes")); });
    const { done, value } = await Promise.race([reader.read(), silent]).finally(() => clearTimeout(timer));
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

function trace(mf, usage, seconds) {
  const stages = mf.route.map((stage) => `${String(stage.peer).slice(-6)} [${stage.first}–${stage.end})`).join(" → ");
  const rate = usage && seconds > 0 ? ` · ${(usage.completion_tokens / seconds).toFixed(1)} tokens/s` : "";
  const first = mf.timings_ms.first_token == null ? "" : ` · first token ${Math.round(mf.timings_ms.first_token)} ms`;
  return `${mf.kind}: ${stages}${first}${rate}`;
}

function add(bubble, text) {
  const talk = at("talk");
  const low = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 60;
  bubble.classList.remove("waiting");
  bubble.textContent += text;
  if (low) talk.scrollTop = talk.scrollHeight; // Who scrolled up to read stays there.
}

async function generate(bubble) {
  const body = { model: chosen, messages: history, stream: true, stream_options: { include_usage: true } };
  const started = performance.now();
  const reply = await fetch("/v1/chat/completions", {
    method: "POST", headers: { "Content-Type": "application/json", ...withKey() }, body: JSON.stringify(body), signal: running.signal,
  });
  if (!reply.ok) throw await failure(reply);
  let whole = false;
  for await (const line of lines(reply.body)) {
    if (line === "data: [DONE]") whole = true;
    else if (line.startsWith(": queued ")) bubble.dataset.waits = `number ${line.slice(9)} in line`;
    if (!line.startsWith("data: {")) continue;
    const chunk = JSON.parse(line.slice(6));
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.choices[0]?.delta.content) add(bubble, chunk.choices[0].delta.content);
    if (chunk.mf) bubble.after(made("div", "trace soft", trace(chunk.mf, chunk.usage, (performance.now() - started) / 1000)));
  }
  if (!whole) throw new Error("the reply broke off");
}

function why(error) {
  if (error.name === "AbortError") return "stopped";
  return error instanceof TypeError ? "the connection to this node broke" : error.message;
}

// Under a reply that failed: what went wrong, and the question again.
function failed(bubble, error, text) {
  const note = made("div", `trace ${error.name === "AbortError" ? "soft" : "bad"}`, why(error));
  const again = made("button", "plain small", "Ask again");
  again.type = "button";
  again.onclick = () => { if (!running) forget(bubble, note), send(text); };
  note.append(again);
  bubble.after(note);
  if (error.status === 401 || error.status === 403) showKeys(true, error.message);
}

// The last turn, which is asked anew.
function forget(bubble, note) {
  if (bubble.textContent) history.splice(-2);
  for (const part of [bubble.previousElementSibling, bubble, note]) part.remove();
}

async function send(text) {
  at("empty")?.remove();
  at("talk").querySelector(".empty")?.remove();
  for (const old of at("talk").querySelectorAll(".small")) old.remove();
  history.push({ role: "user", content: text });
  const bubble = made("div", "said assistant waiting");
  bubble.dataset.waits = "thinking";
  const slow = setTimeout(() => { if (bubble.dataset.waits === "thinking") bubble.dataset.waits = "thinking; a first answer loads the model"; }, 2500);
  at("talk").append(made("div", "said user", text), bubble);
  at("talk").scrollTop = at("talk").scrollHeight;
  running = new AbortController();
  at("send").textContent = "Stop";
  at("send").classList.add("stop");
  try {
    await generate(bubble);
  } catch (error) {
    running.abort(); // A silent stream's work ends with its connection.
    failed(bubble, error, text);
  }
  clearTimeout(slow);
  bubble.classList.remove("waiting");
  // A reply that broke off before its first word leaves no turn behind.
  if (bubble.textContent) history.push({ role: "assistant", content: bubble.textContent });
  else history.pop(), bubble.hidden = true;
  running = null;
  at("send").textContent = "Send";
  at("send").classList.remove("stop");
}

at("form").onsubmit = (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const text = at("prompt").value.trim();
  if (!text || !chosen) return;
  at("prompt").value = "";
  send(text);
};
at("prompt").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) event.preventDefault(), running || at("form").requestSubmit();
};
showKeys(false);
refresh();
setInterval(() => document.hidden || refresh(), EVERY);

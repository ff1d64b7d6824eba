// The node's page: its swarm at a glance, and a chat that streams from this node's own /v1/chat/completions.
// What comes from outside (names, replies) is only ever set as text, never as HTML.

const at = (id) => document.getElementById(id);
const made = (tag, cls, text) => Object.assign(document.createElement(tag), { className: cls, textContent: text ?? "" });

const history = [];
let chosen = null;
let shown = null;
let running = null;

async function ask(path) {
  const reply = await fetch(path);
  const body = await reply.json();
  if (!reply.ok) throw new Error(body.error?.message ?? `HTTP ${reply.status}`);
  return body.data ?? body;
}

function size(bytes) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
  return `${(bytes / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

function choose(id, label) {
  if (chosen !== id) history.length = 0, at("talk").replaceChildren();
  chosen = id;
  shown = label;
  at("title").textContent = `Chat with ${label}`;
  at("send").disabled = false;
  for (const button of document.querySelectorAll(".model")) button.setAttribute("aria-pressed", button.dataset.name === label);
}

function modelButton(model) {
  const label = model.name ?? model.id;
  const button = made("button", "model");
  button.type = "button";
  button.dataset.name = label;
  const losses = model.storage.survives_losses;
  const safe = losses == null ? "durability unknown" : `survives ${losses} ${losses === 1 ? "loss" : "losses"}`;
  button.append(made("b", "", label), made("span", "soft", `${size(model.size_bytes)} · `), made("span", losses > 0 ? "soft good" : "soft bad", safe));
  button.setAttribute("aria-pressed", label === shown);
  button.onclick = () => choose(model.id, label);
  const row = document.createElement("li");
  row.append(button);
  return row;
}

async function refresh() {
  try {
    const [swarm, list, health] = await Promise.all([ask("/api/v1/system/swarm"), ask("/api/v1/models?limit=100"), ask("/health")]);
    at("peer").textContent = swarm.peer_id ?? "";
    at("alive").textContent = swarm.peers_alive;
    at("count").textContent = list.pagination.total_models;
    at("state").textContent = health.status ?? "";
    at("state").className = health.status === "healthy" ? "good" : "soft";
    at("models").replaceChildren(...(list.models.length ? list.models.map(modelButton) : [made("li", "soft", "None yet: publish one, or join a swarm.")]));
    if (!chosen && list.models.length) choose(list.models[0].id, list.models[0].name ?? list.models[0].id);
  } catch (error) {
    at("state").textContent = error.message;
    at("state").className = "bad";
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
  }
}

function trace(mf, usage, seconds) {
  const stages = mf.route.map((stage) => `${String(stage.peer).slice(-6)} [${stage.first}–${stage.end})`).join(" → ");
  const rate = usage && seconds > 0 ? ` · ${(usage.completion_tokens / seconds).toFixed(1)} tokens/s` : "";
  const first = mf.timings_ms.first_token == null ? "" : ` · first token ${Math.round(mf.timings_ms.first_token)} ms`;
  return `${mf.kind}: ${stages}${first}${rate}`;
}

async function generate(bubble) {
  const body = { model: chosen, messages: history, stream: true, stream_options: { include_usage: true } };
  const started = performance.now();
  const reply = await fetch("/v1/chat/completions", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: running.signal,
  });
  if (!reply.ok) throw new Error((await reply.json()).error.message);
  for await (const chunk of events(reply.body)) {
    if (chunk.error) throw new Error(chunk.error.message);
    bubble.textContent += chunk.choices[0]?.delta.content ?? "";
    if (chunk.mf) bubble.after(made("div", "trace soft", trace(chunk.mf, chunk.usage, (performance.now() - started) / 1000)));
    at("talk").scrollTop = at("talk").scrollHeight;
  }
}

async function send(text) {
  history.push({ role: "user", content: text });
  const bubble = made("div", "said assistant");
  at("talk").append(made("div", "said user", text), bubble);
  running = new AbortController();
  at("send").textContent = "Stop";
  try {
    await generate(bubble);
  } catch (error) {
    bubble.after(made("div", "trace bad", error.name === "AbortError" ? "stopped" : error.message));
  }
  // A reply that broke off before its first word leaves no turn behind.
  if (bubble.textContent) history.push({ role: "assistant", content: bubble.textContent });
  else history.pop();
  running = null;
  at("send").textContent = "Send";
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
refresh();
setInterval(refresh, 5000);

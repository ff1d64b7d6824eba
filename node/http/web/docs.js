// Shows /openapi.json as panels by API, each with a form to try the operation from here: parameters, body, the reply as it comes.

import { keep, key, withKey } from "/web/key.js";
import { example, named, schemaText } from "/web/schema.js";

const byId = (id) => document.getElementById(id);
const make = (tag, cls, text) => Object.assign(document.createElement(tag), { className: cls ?? "", textContent: text ?? "" });
const METHODS = ["get", "post", "put", "patch", "delete"];

// A text with its `names` as code.
function prose(tag, cls, text) {
  const box = make(tag, cls);
  box.append(...text.split("`").map((part, at) => (at % 2 ? make("code", "", part) : part)));
  return box;
}

function field(label, input, about) {
  const box = make("label", "field");
  box.append(make("span", "", label), input);
  if (about) box.append(make("small", "soft", about));
  return box;
}

function parameterFields(parameters) {
  return parameters.map((parameter) => {
    const input = make("input");
    input.required = parameter.required;
    input.placeholder = parameter.schema.default ?? "";
    input.dataset.place = parameter.in;
    input.name = parameter.name;
    return field(`${parameter.name} (${parameter.in})`, input, parameter.description ?? parameter.schema.description);
  });
}

function bodyField(spec, body) {
  const [media, content] = Object.entries(body.content)[0];
  const area = make("textarea", "code");
  area.name = "body";
  area.spellcheck = false;
  area.value = JSON.stringify(example(spec, content), null, 2);
  area.rows = Math.min(18, area.value.split("\n").length + 1);
  return field(`Body (${media})`, area, "");
}

function target(path, form) {
  const query = new URLSearchParams();
  for (const input of form.querySelectorAll("[data-place]")) {
    if (input.dataset.place === "path") path = path.replace(`{${input.name}}`, encodeURIComponent(input.value));
    else if (input.dataset.place === "query" && input.value !== "") query.append(input.name, input.value);
  }
  return query.size ? `${path}?${query}` : path;
}

function request(method, form) {
  const headers = withKey();
  if (form.elements.body) headers["Content-Type"] = "application/json";
  for (const input of form.querySelectorAll('[data-place="header"]')) if (input.value !== "") headers[input.name] = input.value;
  return { method: method.toUpperCase(), headers, body: form.elements.body?.value };
}

function curl(path, given) {
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const headers = Object.entries(given.headers).map(([name, value]) => ` -H ${quoted(`${name}: ${name === "Authorization" ? "Bearer $KEY" : value}`)}`);
  return `curl -X ${given.method} ${quoted(location.origin + path)}${headers.join("")}${given.body ? ` -d ${quoted(given.body)}` : ""}`;
}

async function show(reply, output, began) {
  const pretty = (text) => { try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; } };
  const streamed = /event-stream|ndjson/.test(reply.headers.get("Content-Type") ?? "");
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    text += part.value;
    if (streamed) output.textContent = text;
    output.scrollTop = output.scrollHeight;
  }
  output.textContent = streamed ? text : pretty(text);
  return `HTTP ${reply.status} after ${Math.round(performance.now() - began)} ms`;
}

function tryIt(spec, path, method, operation) {
  const form = make("form", "try");
  form.append(...parameterFields(operation.parameters ?? []));
  if (operation.requestBody) form.append(bodyField(spec, operation.requestBody));
  const send = make("button", "send", "Send");
  const stop = make("button", "plain", "Stop");
  const status = make("span", "soft");
  stop.type = "button";
  stop.hidden = true;
  const row = make("div", "row");
  row.append(send, stop, status);
  const line = make("pre", "line");
  const output = make("pre", "reply");
  line.hidden = output.hidden = true;
  form.append(row, line, output);
  form.onsubmit = async (event) => {
    event.preventDefault();
    const abort = new AbortController();
    stop.onclick = () => abort.abort();
    stop.hidden = line.hidden = output.hidden = false;
    send.disabled = true;
    const address = target(path, form);
    const given = request(method, form);
    line.textContent = curl(address, given);
    output.textContent = "";
    const began = performance.now();
    try {
      const reply = await fetch(address, { ...given, signal: abort.signal });
      status.textContent = `HTTP ${reply.status}`;
      status.className = reply.ok ? "good" : "bad";
      status.textContent = await show(reply, output, began);
    } catch (error) {
      status.textContent = error.name === "AbortError" ? "stopped" : `no reply: ${error.message}`;
      status.className = "bad";
    }
    stop.hidden = true;
    send.disabled = false;
  };
  return form;
}

// Types with the same body are named together.
function shape(spec, title, content) {
  const box = make("details", "shape");
  const texts = new Map();
  box.append(make("summary", "soft", title));
  for (const [media, { schema }] of Object.entries(content ?? {})) {
    const text = schemaText(spec, schema);
    texts.set(text, [...(texts.get(text) ?? []), media]);
  }
  for (const [text, media] of texts) box.append(make("span", "soft", media.join(", ")), make("pre", "", text));
  return box;
}

const told = (spec, reply) => (reply.$ref ? spec.components.responses[reply.$ref.split("/").pop()] : reply);

// They all have one body: a table of statuses, and the body once.
function failures(spec, replies) {
  const box = make("details", "shape");
  box.append(make("summary", "soft", `Failures (${replies.map(([status]) => status).join(", ")})`));
  const list = make("dl", "");
  for (const [status, reply] of replies) list.append(make("dt", "", status), prose("dd", "soft", told(spec, reply).description));
  const [, first] = replies[0];
  box.append(list, shape(spec, "Their body", told(spec, first).content));
  return box;
}

function panel(spec, path, method, operation) {
  const box = make("details", "panel operation");
  box.dataset.words = `${method} ${path} ${operation.summary}`.toLowerCase();
  box.id = `${method}${path}`;
  const head = make("summary", "");
  head.append(make("span", `verb ${method}`, method.toUpperCase()), make("code", "", path), make("span", "soft", operation.summary));
  box.append(head);
  box.addEventListener("toggle", () => {
    if (!box.open || box.childElementCount > 1) return;
    if (operation.description) box.append(make("p", "", operation.description));
    box.append(tryIt(spec, path, method, operation));
    if (operation.requestBody) box.append(shape(spec, "Body's schema", operation.requestBody.content));
    const replies = Object.entries(operation.responses);
    for (const [status, { content }] of replies.filter(([status]) => status < 400)) box.append(shape(spec, `Reply's schema (${status})`, content));
    box.append(failures(spec, replies.filter(([status]) => status >= 400)));
    fill();
  });
  return box;
}

// The model chosen above stands in every form that names one.
function fill() {
  const model = byId("model").value;
  if (!model) return;
  for (const input of document.querySelectorAll('input[name="id"][data-place="path"]')) if (!input.value) input.value = model;
  for (const area of document.querySelectorAll("textarea.code")) area.value = named(area.value, model);
}

async function models() {
  const reply = await fetch("/v1/models", { headers: withKey() });
  const listed = await reply.json().catch(() => ({}));
  const none = reply.status === 401 ? "give a key to see them" : reply.ok ? "none known yet" : `HTTP ${reply.status}`;
  if (!listed.data?.length) return byId("model").replaceChildren(Object.assign(make("option", "", none), { value: "" }));
  byId("model").replaceChildren(...listed.data.map(({ id }) => Object.assign(make("option", "", id), { value: id })));
  fill();
}

function find() {
  const words = byId("find").value.toLowerCase().split(/\s+/);
  for (const box of document.querySelectorAll(".operation")) box.hidden = !words.every((word) => box.dataset.words.includes(word));
  for (const group of document.querySelectorAll(".group")) group.hidden = !group.querySelector(".operation:not([hidden])");
}

async function start() {
  const spec = await (await fetch("/openapi.json")).json();
  const all = Object.entries(spec.paths).flatMap(([path, methods]) => METHODS.filter((method) => methods[method]).map((method) => [path, method, methods[method]]));
  for (const { name, description } of spec.tags) {
    const box = make("section", "group");
    const panels = all.filter(([, , operation]) => operation.tags.includes(name)).map((one) => panel(spec, ...one));
    box.append(make("h2", "", name), prose("p", "soft", description), ...panels);
    byId("docs").append(box);
  }
  byId("state").replaceChildren(...prose("p", "", spec.info.description).childNodes);
  byId("find").oninput = find;
  byId("key").value = key();
  byId("key").onchange = () => (keep(byId("key").value), models());
  byId("model").onchange = () => {
    for (const input of document.querySelectorAll('input[name="id"][data-place="path"]')) input.value = "";
    fill();
  };
  const wanted = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  wanted?.setAttribute("open", "");
  await models();
  wanted?.scrollIntoView();
}

start().catch((error) => { byId("state").textContent = `This page couldn't be made: ${error.message}`; });

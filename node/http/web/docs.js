// Shows /openapi.json: one panel an operation, with its bodies' schemas; GETs without parameters can be tried.

const made = (tag, cls, text) => Object.assign(document.createElement(tag), { className: cls, textContent: text ?? "" });
const spec = await (await fetch("/openapi.json")).json();

function resolved(schema, depth = 0) {
  if (Array.isArray(schema)) return schema.map((part) => resolved(part, depth));
  if (schema === null || typeof schema !== "object") return schema;
  if (schema.$ref && depth < 8) return resolved(spec.components.schemas[schema.$ref.split("/").pop()], depth + 1);
  return Object.fromEntries(Object.entries(schema).map(([key, part]) => [key, resolved(part, depth)]));
}

function shown(title, content) {
  const parts = [made("h2", "", title)];
  for (const [media, { schema }] of Object.entries(content ?? {})) {
    parts.push(made("span", "soft", media), made("pre", "", JSON.stringify(resolved(schema), null, 2)));
  }
  return parts;
}

function tryIt(path) {
  const button = made("button", "send", "Try it");
  const output = made("pre", "");
  output.hidden = true;
  button.onclick = async () => {
    const reply = await fetch(path);
    const text = await reply.text();
    output.hidden = false;
    output.textContent = `HTTP ${reply.status}\n${text.startsWith("{") ? JSON.stringify(JSON.parse(text), null, 2) : text}`;
  };
  return [button, output];
}

function panel(path, method, operation) {
  const box = made("details", "panel");
  const head = made("summary", "");
  head.append(made("span", "verb", method.toUpperCase()), made("code", "", path), made("span", "soft", operation.summary));
  box.append(head);
  if (operation.parameters) box.append(made("h2", "", "Parameters"), made("pre", "", JSON.stringify(operation.parameters, null, 2)));
  if (operation.requestBody) box.append(...shown("Body", operation.requestBody.content));
  box.append(...shown("Reply", operation.responses["200"].content));
  if (method === "get" && !path.includes("{")) box.append(...tryIt(path));
  return box;
}

for (const [path, methods] of Object.entries(spec.paths)) {
  for (const [method, operation] of Object.entries(methods)) document.getElementById("docs").append(panel(path, method, operation));
}

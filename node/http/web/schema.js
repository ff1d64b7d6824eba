// What a schema of /openapi.json says: as a short text to read, and as a body to begin with.

const nameOf = (schema) => schema.$ref?.split("/").pop();
const seen = (spec, schema) => (schema.$ref ? spec.components.schemas[nameOf(schema)] : schema);

function line(spec, schema) {
  const parts = [];
  if (schema.$ref) return nameOf(schema);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map((one) => line(spec, one)).join(" | ");
  if (schema.type === "array") return `[${line(spec, schema.items ?? {})}]`;
  if (schema.type === "object" && schema.additionalProperties?.type) return `{*: ${line(spec, schema.additionalProperties)}}`;
  parts.push(Array.isArray(schema.type) ? schema.type.join(" | ") : schema.type ?? "any");
  const bounds = { minimum: "≥", exclusiveMinimum: ">", maximum: "≤", exclusiveMaximum: "<", maxLength: "≤ characters", maxItems: "≤ items" };
  for (const [key, sign] of Object.entries(bounds)) if (schema[key] !== undefined) parts.push(`${sign} ${schema[key]}`);
  return parts.join(" ");
}

function members(spec, schema) {
  const wanted = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, part]) => {
    const about = part.description ? `   — ${part.description}` : "";
    const otherwise = part.default !== undefined && part.default !== null ? ` = ${JSON.stringify(part.default)}` : "";
    return `  ${name}${wanted.has(name) ? "" : "?"}: ${line(spec, part)}${otherwise}${about}`;
  });
}

function mentioned(schema, found = new Set()) {
  if (schema === null || typeof schema !== "object") return found;
  if (schema.$ref) found.add(nameOf(schema));
  for (const part of Object.values(schema)) mentioned(part, found);
  return found;
}

// Every struct that the schema leads to, once each.
export function schemaText(spec, schema) {
  const queue = [...mentioned(schema)];
  const told = new Set();
  const texts = schema.$ref ? [] : schema.properties ? [`{\n${members(spec, schema).join("\n")}\n}`] : [[schema.type && line(spec, schema), schema.description].filter(Boolean).join("\n")];
  while (queue.length) {
    const name = queue.shift();
    if (told.has(name)) continue;
    told.add(name);
    const struct = spec.components.schemas[name];
    const about = struct.description ? `${struct.description.replace(/\s+/g, " ")}\n` : "";
    texts.push(struct.properties ? `${about}${name} {\n${members(spec, struct).join("\n")}\n}` : `${about}${name}: ${line(spec, struct)}`);
    queue.push(...mentioned(struct));
  }
  return texts.join("\n\n");
}

function sample(spec, schema, depth) {
  const real = seen(spec, schema);
  if (real.const !== undefined) return real.const;
  if (real.enum) return real.enum[0];
  const choices = real.anyOf ?? real.oneOf;
  if (choices) return sample(spec, choices[0], depth);
  if (real.type === "object") {
    if (depth > 6) return {};
    return Object.fromEntries((real.required ?? []).map((name) => [name, sample(spec, real.properties[name], depth + 1)]));
  }
  return { array: [], string: "", integer: real.minimum ?? 0, number: real.minimum ?? 0, boolean: false }[real.type] ?? null;
}

export function example(spec, content) {
  return content.example ?? sample(spec, content.schema, 0);
}

// The same body with this model, where it names one and can still be read.
export function named(text, model) {
  try {
    const body = JSON.parse(text);
    return "model" in body ? JSON.stringify({ ...body, model }, null, 2) : text;
  } catch {
    return text;
  }
}

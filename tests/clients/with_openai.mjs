// OpenAI's client for Node against a node: `with_openai.mjs URL MODEL`.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Name the capital of France." }];
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", parameters, strict: true } }];

const plain = await client.chat.completions.create({ model, messages, max_completion_tokens: 12 });
assert.match(plain.choices[0].message.content, /Paris/);

let text = "";
let usage;
for await (const chunk of await client.chat.completions.create({ model, messages, max_completion_tokens: 12, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, plain.choices[0].message.content);
assert.equal(usage.completion_tokens, plain.usage.completion_tokens);

const stream = client.chat.completions.stream({ model, messages, tools, tool_choice: "required", max_completion_tokens: 60 });
const called = (await stream.finalChatCompletion()).choices[0];
assert.equal(called.message.tool_calls[0].function.name, "weather");
assert.ok(["Paris", "Rome"].includes(JSON.parse(called.message.tool_calls[0].function.arguments).city));

const format = { type: "json_schema", json_schema: { name: "answer", schema: parameters, strict: true } };
const shaped = await client.chat.completions.parse({ model, messages, response_format: format, max_completion_tokens: 60 });
assert.ok(["Paris", "Rome"].includes(JSON.parse(shaped.choices[0].message.content).city));

const response = await client.responses.create({ model, input: messages[0].content, max_output_tokens: 12 });
assert.match(response.output_text, /Paris/);
const kinds = new Set();
for await (const event of await client.responses.create({ model, input: messages[0].content, max_output_tokens: 12, stream: true })) kinds.add(event.type);
assert.ok(kinds.has("response.output_text.delta") && (kinds.has("response.completed") || kinds.has("response.incomplete")));

await assert.rejects(client.chat.completions.create({ model, messages, verbosity: "low" }), { status: 400, param: "verbosity" });
await assert.rejects(client.chat.completions.create({ model: "nobody", messages }), { status: 404, code: "model_not_found" });
console.log("all held");

// Vercel's AI SDK against a node, through both of its providers: `with_ai_sdk.mjs URL MODEL`.

import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";

const [url, name] = process.argv.slice(2);
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const compatible = createOpenAICompatible({ name: "swarm", baseURL: `${url}/v1`, includeUsage: true, supportsStructuredOutputs: true });
const prompt = "Name the capital of France.";
const few = { maxOutputTokens: 12, temperature: 0, maxRetries: 0 };
const roomy = { ...few, maxOutputTokens: 80 };
const schema = jsonSchema({
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
});

for (const model of [compatible(name), openai.chat(name), openai(name)]) {
  const plain = await generateText({ model, prompt, ...few });
  assert.match(plain.text, /Paris/);
  assert.ok(plain.usage.outputTokens <= 12);

  const streamed = streamText({ model, prompt, ...few });
  let text = "";
  for await (const part of streamed.textStream) text += part;
  assert.equal(text, plain.text);
  assert.equal((await streamed.usage).outputTokens, plain.usage.outputTokens);

  const shaped = await generateText({ model, prompt, output: Output.object({ schema }), ...roomy });
  assert.ok(["Paris", "Rome"].includes(shaped.output.city));

  const weather = tool({ description: "Tells the weather", inputSchema: schema, execute: async ({ city }) => `rain in ${city}` });
  const called = await generateText({ model, prompt, tools: { weather }, toolChoice: "required", stopWhen: stepCountIs(1), ...roomy });
  assert.equal(called.toolCalls[0].toolName, "weather");
  assert.match(called.toolResults[0].output, /^rain in/);
  const live = streamText({ model, prompt, tools: { weather }, toolChoice: "required", stopWhen: stepCountIs(1), ...roomy });
  const kinds = new Set();
  for await (const part of live.fullStream) kinds.add(part.type);
  assert.ok(kinds.has("tool-input-delta") && kinds.has("tool-result"), [...kinds].join());
}

const going = await generateText({ model: compatible.completionModel(name), prompt: "The capital of France is", ...few });
assert.ok(going.text);
await assert.rejects(generateText({ model: openai.chat("nobody"), prompt, ...few }), { statusCode: 404 });
console.log("all held");

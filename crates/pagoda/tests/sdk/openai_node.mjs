// The openai package for Node: argv[2] is the base URL of a server with a scripted model, argv[3] the stage's line, argv[4] the
// base URL of one with a real model, argv[5] the folder in which the package is installed.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import net from "node:net";
import readline from "node:readline";

const [scripted, stageAddress, real, modules] = process.argv.slice(2);
const OpenAI = createRequire(`${modules}/package.json`)("openai");
const { zodFreeSchema, CALL, ARGUMENTS, TOOL } = fixtures();

const [host, port] = stageAddress.split(":");
const socket = net.connect(Number(port), host);
const lines = readline.createInterface({ input: socket })[Symbol.asyncIterator]();

async function command(body) {
  socket.write(`${JSON.stringify(body)}\n`);
  return JSON.parse((await lines.next()).value);
}

const play = (...replies) => command({ play: replies.map((say) => ({ say })) });

async function end() {
  const state = await command({});
  assert.deepEqual([state.faults, state.left], [[], []]);
  return state.prompts;
}

function fixtures() {
  const parameters = {
    type: "object",
    properties: { city: { type: "string" }, unit: { type: "string", enum: ["celsius", "fahrenheit"] } },
    required: ["city", "unit"],
    additionalProperties: false,
  };
  const ARGUMENTS = { city: "Zürich 🏔", unit: "celsius" };
  return {
    zodFreeSchema: { name: "place", strict: true, schema: parameters },
    ARGUMENTS,
    TOOL: { type: "function", function: { name: "get_weather", description: "Weather.", strict: true, parameters } },
    CALL: `<tool_call>\n{"name": "get_weather", "arguments": ${JSON.stringify(ARGUMENTS)}}\n</tool_call>`,
  };
}

async function open(base) {
  const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: "unused", maxRetries: 0 });
  const model = (await client.models.list()).data[0].id;
  const messages = [{ role: "user", content: "What is the capital of France?" }];
  const chat = (more) => client.chat.completions.create({ model, messages, temperature: 0, ...more });
  return { client, model, messages, chat };
}

const stage = await open(scripted);
const smol = await open(real);

const CHECKS = {
  async a_call_is_the_same_streamed_and_not() {
    for (const tool_choice of ["auto", "required"]) {
      await play(CALL, CALL, CALL);
      const whole = await stage.chat({ tools: [TOOL], tool_choice });
      const [call] = whole.choices[0].message.tool_calls;
      assert.equal(call.function.name, "get_weather");
      assert.deepEqual(JSON.parse(call.function.arguments), ARGUMENTS);
      assert.equal(whole.choices[0].message.content, null);
      assert.equal(whole.choices[0].finish_reason, "tool_calls");

      let text = "";
      let usage = null;
      const options = { stream: true, stream_options: { include_usage: true } };
      for await (const chunk of await stage.chat({ tools: [TOOL], tool_choice, ...options })) {
        for (const delta of chunk.choices[0]?.delta.tool_calls ?? []) text += delta.function.arguments ?? "";
        usage = chunk.usage ?? usage;
      }
      assert.equal(text, call.function.arguments);
      assert.equal(usage.total_tokens, whole.usage.total_tokens);

      const body = { model: stage.model, messages: stage.messages, tools: [TOOL], tool_choice };
      const final = await stage.client.chat.completions.stream(body).finalChatCompletion();
      assert.equal(final.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
      await end();
    }
  },

  async the_tool_runner_goes_on_until_there_is_an_answer() {
    await play(CALL, "It is cold.");
    const seen = [];
    const tool = {
      type: "function",
      function: {
        ...TOOL.function,
        parse: JSON.parse,
        function: (given) => {
          seen.push(given);
          return "3 degrees";
        },
      },
    };
    const runner = stage.client.chat.completions.runTools({
      model: stage.model,
      messages: stage.messages,
      tools: [tool],
    });
    assert.equal(await runner.finalContent(), "It is cold.");
    assert.deepEqual(seen, [ARGUMENTS]);
    assert.ok((await end())[1].includes("3 degrees"));
  },

  async a_schema_is_kept() {
    await play(JSON.stringify(ARGUMENTS));
    const response_format = { type: "json_schema", json_schema: zodFreeSchema };
    const answer = await stage.client.chat.completions.parse({
      model: stage.model,
      messages: stage.messages,
      response_format,
    });
    assert.deepEqual(JSON.parse(answer.choices[0].message.content), ARGUMENTS);
    await end();
  },

  async chat_streams_what_it_answers() {
    const whole = await smol.chat({ max_tokens: 24 });
    assert.match(whole.choices[0].message.content, /Paris/);
    let text = "";
    for await (const chunk of await smol.chat({ max_tokens: 24, stream: true })) {
      text += chunk.choices[0].delta.content ?? "";
    }
    assert.equal(text, whole.choices[0].message.content);
  },

  async a_weak_model_is_held_to_the_schema() {
    const answer = await smol.chat({ tools: [TOOL], tool_choice: "required", max_tokens: 300 });
    const [call] = answer.choices[0].message.tool_calls;
    const given = JSON.parse(call.function.arguments);
    assert.deepEqual(Object.keys(given), ["city", "unit"]);
    assert.equal(typeof given.city, "string");
    assert.ok(["celsius", "fahrenheit"].includes(given.unit));
  },

  async embeddings_are_vectors() {
    const input = ["a cat", "a kitten", "the stock market"];
    // The package asks for base64 by itself, and decodes it.
    const asked = await smol.client.embeddings.create({ model: "text-embedding-3-small", input });
    const floats = await smol.client.embeddings.create({
      model: "text-embedding-3-small",
      input,
      encoding_format: "float",
    });
    const [cat, kitten, market] = asked.data.map((entry) => entry.embedding);
    const dot = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);
    assert.equal(cat.length, 384);
    assert.ok(Math.abs(dot(cat, cat) - 1) < 1e-4);
    assert.ok(dot(cat, kitten) > dot(cat, market) + 0.3);
    floats.data.forEach((entry, index) => assert.ok(dot(entry.embedding, asked.data[index].embedding) > 0.9999));
  },

  async errors_are_the_packages_own() {
    await assert.rejects(smol.chat({ temperature: -1 }), OpenAI.BadRequestError);
    await assert.rejects(smol.chat({ model: "no-such-model" }), OpenAI.NotFoundError);
    const long = [{ role: "user", content: "word ".repeat(5000) }];
    await assert.rejects(smol.chat({ messages: long }), (error) => error.code === "context_length_exceeded");
  },
};

for (const [name, check] of Object.entries(CHECKS)) {
  await check();
  console.log(`ok ${name}`);
}
socket.destroy();

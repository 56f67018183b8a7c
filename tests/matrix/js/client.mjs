// The official JavaScript SDKs, as columns of the matrix: node client.mjs CLIENT URL WISHES
// WISHES is a JSON list of {wish, model, stream?, tools?, texts?}. Prints a JSON list of what each came to: an answer as
// tests/matrix/clients.py has it, or {error, status}.
const [name, url, wishes] = [process.argv[2], process.argv[3], JSON.parse(process.argv[4])];
const HI = [{ role: "user", content: "Say hello to the people over there." }];
const PICTURE = "iVBORw0KGgo=";
const SCHEMA = {
  type: "object",
  properties: { answer: { type: "integer" } },
  required: ["answer"],
  additionalProperties: false,
};
const CITY = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const FUNCTION = { type: "function", function: { name: "weather", description: "of a city", parameters: CITY } };
const join = (parts) => parts.map((part) => part ?? "").join("");

async function openai() {
  const { default: OpenAI } = await import("openai");
  const sdk = new OpenAI({ baseURL: `${url}/v1`, apiKey: "-", maxRetries: 0 });
  const said = ({ choices: [{ message }], usage }) => ({
    text: message.content ?? "",
    thinking: message.reasoning_content ?? "",
    calls: (message.tool_calls ?? []).map((c) => [c.function.name, JSON.parse(c.function.arguments)]),
    tokens_in: usage?.prompt_tokens,
    tokens_out: usage?.completion_tokens,
  });
  return {
    async chat({ model, stream, tools }) {
      const asked = { model, messages: HI, max_tokens: 64, ...(tools ? { tools: [FUNCTION] } : {}) };
      if (!stream) return said(await sdk.chat.completions.create(asked));
      const events = sdk.chat.completions.stream({ ...asked, stream_options: { include_usage: true } });
      let [thinking, pieces] = ["", 0];
      for await (const event of events) {
        pieces += event.choices.length;
        thinking += event.choices[0]?.delta?.reasoning_content ?? "";
      }
      return { ...said(await events.finalChatCompletion()), thinking, pieces };
    },
    async picture({ model }) {
      const image = { type: "image_url", image_url: { url: `data:image/png;base64,${PICTURE}` } };
      const messages = [{ role: "user", content: [{ type: "text", text: "See?" }, image] }];
      return said(await sdk.chat.completions.create({ model, messages }));
    },
    async shaped({ model }) {
      const response_format = { type: "json_schema", json_schema: { name: "it", schema: SCHEMA, strict: true } };
      return JSON.parse(said(await sdk.chat.completions.create({ model, messages: HI, response_format })).text);
    },
    async respond({ model }) {
      const events = sdk.responses.stream({ model, input: "hi" });
      const numbers = [];
      for await (const event of events) numbers.push(event.sequence_number);
      return { text: (await events.finalResponse()).output_text, numbers };
    },
    async embed({ model, texts }) {
      return (await sdk.embeddings.create({ model, input: texts })).data.map((e) => Array.from(e.embedding));
    },
  };
}

async function ollama() {
  const { Ollama } = await import("ollama");
  const sdk = new Ollama({ host: url });
  const said = (parts) => ({
    text: join(parts.map((p) => p.message.content)),
    thinking: join(parts.map((p) => p.message.thinking)),
    calls: parts.flatMap((p) => p.message.tool_calls ?? []).map((c) => [c.function.name, c.function.arguments]),
    tokens_in: parts.at(-1).prompt_eval_count,
    tokens_out: parts.at(-1).eval_count,
    pieces: parts.length,
  });
  return {
    async chat({ model, stream, tools }) {
      const asked = { model, messages: HI, options: { num_predict: 64 }, ...(tools ? { tools: [FUNCTION] } : {}) };
      if (!stream) return said([await sdk.chat(asked)]);
      const parts = [];
      for await (const part of await sdk.chat({ ...asked, stream: true })) parts.push(part);
      return said(parts);
    },
    async picture({ model }) {
      return said([await sdk.chat({ model, messages: [{ role: "user", content: "See?", images: [PICTURE] }] })]);
    },
    async shaped({ model }) {
      return JSON.parse((await sdk.chat({ model, messages: HI, format: SCHEMA })).message.content);
    },
    async embed({ model, texts }) {
      return (await sdk.embed({ model, input: texts })).embeddings;
    },
  };
}

async function anthropic() {
  const { default: Anthropic } = await import("@anthropic-ai/sdk");
  const sdk = new Anthropic({ baseURL: url, apiKey: "-", maxRetries: 0 });
  const of = (message, type) => message.content.filter((block) => block.type === type);
  const said = (message) => ({
    text: join(of(message, "text").map((b) => b.text)),
    thinking: join(of(message, "thinking").map((b) => b.thinking)),
    calls: of(message, "tool_use").map((b) => [b.name, b.input]),
    tokens_in: message.usage.input_tokens + (message.usage.cache_read_input_tokens ?? 0),
    tokens_out: message.usage.output_tokens,
  });
  return {
    async chat({ model, stream, tools }) {
      const tool = { name: "weather", description: "of a city", input_schema: CITY };
      const asked = { model, messages: HI, max_tokens: 64, ...(tools ? { tools: [tool] } : {}) };
      if (!stream) return said(await sdk.messages.create(asked));
      const events = sdk.messages.stream(asked);
      let pieces = 0;
      for await (const event of events) pieces += event.type === "content_block_delta";
      return { ...said(await events.finalMessage()), pieces };
    },
    async picture({ model }) {
      const source = { type: "base64", media_type: "image/png", data: PICTURE };
      const messages = [{ role: "user", content: [{ type: "text", text: "See?" }, { type: "image", source }] }];
      return said(await sdk.messages.create({ model, messages, max_tokens: 64 }));
    },
    async shaped({ model }) {
      const output_config = { format: { type: "json_schema", schema: SCHEMA } };
      return JSON.parse(said(await sdk.messages.create({ model, messages: HI, max_tokens: 64, output_config })).text);
    },
    async embed() {
      return null;
    },
  };
}

const client = await { openai, ollama, anthropic }[name]();
const results = [];
for (const wish of wishes) {
  try {
    results.push(await client[wish.wish](wish));
  } catch (error) {
    results.push({ error: String(error.message), status: error.status ?? error.status_code ?? null });
  }
}
// Kept connections would hold it for seconds.
process.stdout.write(`${JSON.stringify(results)}\n`, () => process.exit(0));

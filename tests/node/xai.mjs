// What a user of Vercel's AI SDK does with Grok, against the gateway at BASE_URL. Prints what came of it as JSON.

import { createXai } from '@ai-sdk/xai';
import { APICallError, generateText, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';

const { BASE_URL, KEY } = process.env;
const xai = createXai({ baseURL: BASE_URL, apiKey: KEY });
const prompt = 'Tell me a story about lighthouses';
const maxRetries = 0;

const weather = tool({
  description: 'The weather in a city',
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `It is sunny in ${city}.`,
});

/** The parts of a stream, and the errors among them. */
async function readStream(options) {
  const errors = [];
  const result = streamText({ maxRetries, ...options, onError: ({ error }) => errors.push(error) });
  const types = [];
  let text = '';
  let reasoning = '';
  for await (const part of result.fullStream) {
    if (types.at(-1) !== part.type) types.push(part.type);
    if (part.type === 'text-delta') text += part.text;
    if (part.type === 'reasoning-delta') reasoning += part.text;
  }
  return { result, types, text, reasoning, errors };
}

/** What a call that fails is refused with. */
async function fail(options) {
  try {
    await generateText({ maxRetries, prompt, ...options });
    return null;
  } catch (error) {
    return { isApiError: APICallError.isInstance(error), status: error.statusCode, message: error.message };
  }
}

const whole = await generateText({ model: xai('grok-4.7'), prompt, maxRetries });
const streamed = await readStream({ model: xai('grok-4.7'), prompt });
const called = await readStream({
  model: xai('grok-4.7'),
  prompt: 'What is the weather in Berlin?',
  tools: { weather },
  stopWhen: stepCountIs(3),
});
const generated = await generateText({
  model: xai('grok-4.3'),
  prompt: 'What is the weather in Berlin?',
  tools: { weather },
  stopWhen: stepCountIs(3),
  maxRetries,
});
const searched = await readStream({
  model: xai('grok-4.3'),
  prompt,
  tools: { web_search: xai.tools.webSearch() },
});
const unstored = await readStream({
  model: xai('grok-4.7'),
  prompt,
  providerOptions: { xai: { store: false } },
});
const short = await readStream({ model: xai('grok-4.3'), prompt, maxOutputTokens: 20 });
const cut = await readStream({ model: xai('sandbox-truncated'), prompt });
const broken = await readStream({ model: xai('sandbox-drop-rst'), prompt });

console.log(
  JSON.stringify({
    whole: {
      text: whole.text,
      reasoning: whole.reasoningText,
      finish: whole.finishReason,
      tokens: whole.usage.totalTokens,
    },
    streamed: {
      text: streamed.text,
      reasoning: streamed.reasoning,
      finish: await streamed.result.finishReason,
      tokens: (await streamed.result.usage).totalTokens,
      errors: streamed.errors.map(String),
    },
    called: {
      text: called.text,
      types: called.types,
      steps: (await called.result.steps).length,
      errors: called.errors.map(String),
    },
    generated: { text: generated.text, steps: generated.steps.length },
    searched: { text: searched.text, types: searched.types, errors: searched.errors.map(String) },
    unstored: { reasoning: unstored.reasoning, errors: unstored.errors.map(String) },
    short: { finish: await short.result.finishReason, errors: short.errors.map(String) },
    cut: { types: cut.types, errors: cut.errors.map((error) => error.message) },
    broken: { types: broken.types, errors: broken.errors.map((error) => error.message) },
    wrongKey: await fail({ model: createXai({ baseURL: BASE_URL, apiKey: 'wrong-key-here' })('grok-4.3') }),
    noCredits: await fail({ model: xai('sandbox-no-credits') }),
  }),
);

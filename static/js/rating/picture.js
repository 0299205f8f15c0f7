/* Decoded pictures, by a worker where the browser has one. */

import { decode } from "./png.js";

const waiting = new Map(); // by number: {blob, resolve, reject}
let asked = 0;
let worker; // undefined: not started; null: this browser gives none

const decodedHere = async (blob) => decode(await blob.arrayBuffer());

function onReply({ data: { id, picture, error } }) {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error) reject(new Error(error));
  else resolve(picture);
}

/** No module workers in this browser: decode on the page itself. */
function onNoWorker() {
  worker = null;
  for (const { blob, resolve, reject } of waiting.values()) decodedHere(blob).then(resolve, reject);
  waiting.clear();
}

function started() {
  try {
    const made = new Worker(new URL("./decoder.js", import.meta.url), { type: "module" });
    made.addEventListener("message", onReply);
    made.addEventListener("error", onNoWorker);
    return made;
  } catch {
    return null;
  }
}

/** The picture in a blob of PNG (png.js: decode). */
export function decoded(blob) {
  if (worker === undefined) worker = started();
  if (worker === null) return decodedHere(blob);
  return new Promise((resolve, reject) => {
    asked += 1;
    waiting.set(asked, { blob, resolve, reject });
    worker.postMessage({ id: asked, blob });
  });
}

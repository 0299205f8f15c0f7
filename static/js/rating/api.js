/* JSON and pictures over fetch, as the signed-in reader. */

/** The server understood and refused for good: sending the same again is no use. */
export class Refused extends Error {
  constructor(status, body) {
    super(body?.detail ?? `The server refused it (${status}).`);
    this.status = status;
    this.body = body ?? {};
  }
}

/** Something in between failed (connection, server, sign-in): the same request may succeed later. */
export class Unreachable extends Error {
  constructor(message, { needsSignIn = false } = {}) {
    super(message);
    this.needsSignIn = needsSignIn;
  }
}

const RETRIABLE = new Set([408, 425, 429]);
const TIMEOUT_MS = 20_000;

function csrfToken() {
  // Read at every request: the cookie changes when the reader signs in again in another window.
  const cookie = document.cookie.split("; ").find((entry) => entry.startsWith("csrftoken="));
  return cookie?.slice("csrftoken=".length) ?? document.querySelector("[name=csrfmiddlewaretoken]").value;
}

async function answer(url, { timeout = TIMEOUT_MS, ...options }) {
  let response;
  try {
    response = await fetch(url, { credentials: "same-origin", signal: AbortSignal.timeout(timeout), ...options });
  } catch {
    throw new Unreachable("no connection");
  }
  if (response.status === 401 || response.status === 403) {
    throw new Unreachable("you are signed out here", { needsSignIn: true });
  }
  if (response.status >= 500 || RETRIABLE.has(response.status)) {
    throw new Unreachable(`the server answered ${response.status}`);
  }
  return response;
}

async function json(url, options) {
  const response = await answer(url, options);
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new Refused(response.status, body);
  if (body === null) throw new Unreachable("the answer broke off");
  return body;
}

export const get = (url, { timeout } = {}) => json(url, { timeout, headers: { Accept: "application/json" } });

export const post = (url, body) => json(url, {
  method: "POST",
  headers: { Accept: "application/json", "Content-Type": "application/json", "X-CSRFToken": csrfToken() },
  body: JSON.stringify(body),
});

/** The bytes of the image at `url`. */
export async function bytes(url) {
  const response = await answer(url, {});
  if (!response.ok) throw new Refused(response.status);
  const type = response.headers.get("Content-Type");
  if (type !== "image/png") throw new Unreachable("the answer is no image"); // of a network's own sign-in page, say
  return response.blob().catch(() => { throw new Unreachable("the answer broke off"); });
}

/** A random (version 4) UUID; crypto.randomUUID is missing on plain HTTP. */
export function uuid() {
  const random = crypto.getRandomValues(new Uint8Array(16));
  random[6] = (random[6] & 0x0f) | 0x40;
  random[8] = (random[8] & 0x3f) | 0x80;
  const hex = [...random].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

export const sleep = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });

/* JSON over fetch, as the signed-in reader. */

/** The server understood and refused for good: sending the same again is no use. */
export class Refused extends Error {
  constructor(status, body) {
    super(body?.detail ?? `The server refused it (${status}).`);
    this.status = status;
    this.body = body ?? {};
  }
}

/** Something in between failed (connection, server, sign-in): the same request may succeed later. */
export class Unreachable extends Error {}

const RETRIABLE = new Set([408, 425, 429]);
const TIMEOUT_MS = 20_000;

function csrfToken() {
  // Read at every request: the cookie changes when the reader signs in again in another window.
  const cookie = document.cookie.split("; ").find((entry) => entry.startsWith("csrftoken="));
  return cookie?.slice("csrftoken=".length) ?? document.querySelector("[name=csrfmiddlewaretoken]").value;
}

async function request(url, options) {
  let response;
  try {
    response = await fetch(url, { credentials: "same-origin", signal: AbortSignal.timeout(TIMEOUT_MS), ...options });
  } catch {
    throw new Unreachable("no connection");
  }
  if (response.status === 401 || response.status === 403) {
    throw new Unreachable("you are signed out: sign in in another window, and the ratings here are saved");
  }
  if (response.status >= 500 || RETRIABLE.has(response.status)) {
    throw new Unreachable(`the server answered ${response.status}`);
  }
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new Refused(response.status, body);
  if (body === null) throw new Unreachable("the answer broke off");
  return body;
}

export const get = (url) => request(url, { headers: { Accept: "application/json" } });

export const post = (url, body) => request(url, {
  method: "POST",
  headers: { Accept: "application/json", "Content-Type": "application/json", "X-CSRFToken": csrfToken() },
  body: JSON.stringify(body),
});

/** A random (version 4) UUID; crypto.randomUUID is missing on plain HTTP. */
export function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

export const sleep = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });

/* What a page asks the server for once it is open: JSON, or another page to take parts from. */

/** Nothing came, and why: "no connection", "the server answered 502". */
export class NoAnswer extends Error {
  constructor(message, { isSignedOut = false, status = null } = {}) {
    super(message);
    this.isSignedOut = isSignedOut;
    this.status = status;
  }
}

async function answer(url, options) {
  let response;
  try {
    response = await fetch(url, { credentials: "same-origin", ...options });
  } catch {
    throw new NoAnswer("no connection");
  }
  // A redirect leads to the sign-in page, which answers as if all were well.
  if (response.redirected || [401, 403].includes(response.status)) throw new NoAnswer("you are signed out", { isSignedOut: true });
  if (!response.ok) throw new NoAnswer(`the server answered ${response.status}`, { status: response.status });
  return response;
}

const brokenOff = () => { throw new NoAnswer("the answer broke off"); };

/** The JSON at `url`; throws NoAnswer. */
export async function json(url, options = {}) {
  const response = await answer(url, { headers: { Accept: "application/json" }, ...options });
  return response.json().catch(brokenOff);
}

/** The page at `url` as a document of its own; throws NoAnswer. */
export async function page(url) {
  const response = await answer(url);
  return new DOMParser().parseFromString(await response.text().catch(brokenOff), "text/html");
}

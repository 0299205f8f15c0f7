/* What the reader did, on its way to the server: one request after the other, in order, each tried until the server
   has answered. Every request carries a key of its own, so a reply that was lost does no harm. */

import { Refused, Unreachable, post, sleep } from "./api.js";

const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 30_000;

export class Outbox {
  #entries = [];
  #isSending = false;
  #onChange;

  /** onChange({unsaved, trouble}) after every change; trouble: "" or why the last attempt failed, and what follows. */
  constructor(onChange) {
    this.#onChange = onChange;
    addEventListener("online", () => this.#wake?.());
  }

  #wake = null;

  get unsaved() {
    return this.#entries.length;
  }

  /** Send `body` to `url` after all that was added before. Resolves with the reply; rejects with Refused only. */
  add(url, body) {
    return new Promise((resolve, reject) => {
      this.#entries.push({ url, body, resolve, reject });
      this.#report("");
      this.#send();
    });
  }

  #report(trouble) {
    this.#onChange({ unsaved: this.unsaved, trouble });
  }

  async #send() {
    if (this.#isSending) return;
    this.#isSending = true;
    let wait = FIRST_WAIT_MS;
    while (this.#entries.length) {
      const { url, body, resolve, reject } = this.#entries[0];
      try {
        const reply = await post(url, body);
        this.#entries.shift();
        resolve(reply);
      } catch (error) {
        if (error instanceof Unreachable) {
          this.#report(`${error.message}. Trying again in ${Math.round(wait / 1000)} s`);
          await this.#pause(wait);
          wait = Math.min(2 * wait, LONGEST_WAIT_MS);
          continue;
        }
        this.#entries.shift();
        reject(error instanceof Refused ? error : new Refused(0, { detail: String(error) }));
      }
      wait = FIRST_WAIT_MS;
      this.#report("");
    }
    this.#isSending = false;
  }

  /** Wait, or go on at once when the browser is back online. */
  #pause(milliseconds) {
    return Promise.race([sleep(milliseconds), new Promise((resolve) => { this.#wake = resolve; })]);
  }
}

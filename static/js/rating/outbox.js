/* What the reader did, on its way to the server: one request after the other, in order, each tried until the server
   has answered. Entries go into the browser's database at the key press (js/rating/store.js), so that a reload, a crash,
   a lost network or a sign-out takes nothing. Every request carries a key of its own: a reply that was
   lost, or a second window that sends the same, does no harm. */

import { Refused, Unreachable, post, sleep, uuid } from "./api.js";
import { fallbackStore } from "./store.js";

const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 30_000;
const AFTER_MS = 100; // from the key press to the first attempt
const LOCK = "medsyn-outbox"; // one window sends at a time, where the browser has locks

const tryOnce = (work) => (navigator.locks ? navigator.locks.request(LOCK, work) : work());

/** What entries, in order, make of their places: id -> {place, isAnswered, revision, entry}; entry: the last rating. */
export function outcomes(entries) {
  const found = new Map();
  for (const entry of entries) {
    const last = found.get(entry.place.id);
    const isAnswered = entry.kind === "rating" || (entry.kind === "remark" && (last?.isAnswered ?? true));
    const rating = entry.kind === "rating" ? entry : last?.entry;
    found.delete(entry.place.id); // so that the order is that of the last entries
    found.set(entry.place.id, { place: entry.place, isAnswered, revision: entry.body.revision + 1, entry: rating });
  }
  return found;
}

/** By how many the entries, once sent, raise the number of answers of the study that stand; its training round is not
    part of it. */
export const gain = (entries) => entries
  .filter(({ place }) => !place.is_training)
  .reduce((sum, { kind }) => sum + (kind === "rating") - (kind === "undo"), 0);

export class Outbox {
  #store;
  #reader;
  #kept = []; // entries in the store
  #coming = []; // entries on their way into it
  #refusals = [];
  #onChange;
  #onReply;
  #channel = "BroadcastChannel" in window ? new BroadcastChannel("medsyn-rating") : null;
  #isSending = false;
  #undoKey = null; // of undoLast, until the server has answered
  #wake = null;
  trouble = null; // the last failure: Unreachable, with the wait that follows in `seconds`

  /** onChange(): entries, refusals or trouble are not what they were; onOther(message): another window did something;
      onReply(entry, reply): the server's reply to an entry that this window has sent. */
  constructor(store, reader, { onChange, onOther, onReply = () => {} }) {
    this.#store = store;
    this.#reader = reader;
    this.#onChange = onChange;
    this.#onReply = onReply;
    addEventListener("online", () => this.#wake?.());
    addEventListener("focus", () => this.#wake?.()); // back from signing in, say
    this.#channel?.addEventListener("message", ({ data }) => {
      if (data.reader !== reader) return;
      this.#refresh().then(() => this.#send());
      if (data.kind) onOther(data);
    });
  }

  async open() {
    await this.#refresh();
    this.#send();
  }

  /** In order; one that has just been kept may still stand among the coming. */
  get entries() {
    const kept = new Set(this.#kept.map((entry) => entry.body.client_uuid));
    return [...this.#kept, ...this.#coming.filter((entry) => !kept.has(entry.body.client_uuid))];
  }

  get store() { return this.#store; }
  get unsaved() { return this.entries.length; }
  get refusals() { return this.#refusals; }

  /** Take an entry {study, kind, url, body, place, value}; resolves once it is kept (or in memory, if nothing keeps
      it). */
  add(given) {
    const entry = { ...given, reader: this.#reader };
    this.#coming.push(entry); // said after AFTER_MS: the next image is painted first
    const kept = this.#durably((store) => store.add(entry));
    kept.then(() => this.#dispatch(entry));
    return kept;
  }

  async #dispatch(entry) {
    await sleep(AFTER_MS);
    await this.#refresh();
    this.#coming = this.#coming.filter((other) => other !== entry);
    this.#onChange();
    this.tell(entry.kind, entry.study, entry.place);
    this.#send();
  }

  /** Let the other windows know. */
  tell(kind, study, { id, is_training }) {
    this.#channel?.postMessage({ reader: this.#reader, kind, study, id, is_training });
  }

  /** Ask the server to take back the last answer it has, once nothing is unsaved; its reply. Where that was lost, the
      next call asks under the same key, and takes back nothing more. */
  async undoLast(url) {
    this.#undoKey ??= uuid();
    try {
      const reply = await post(url, { client_uuid: this.#undoKey, client_time: new Date().toISOString(), reader: this.#reader });
      this.#undoKey = null;
      return reply;
    } catch (error) {
      if (error instanceof Refused) this.#undoKey = null;
      throw error;
    }
  }

  async dismiss(refusal) {
    await this.#durably((store) => store.dismiss(refusal.seq));
    await this.#refresh();
    this.#channel?.postMessage({ reader: this.#reader });
  }

  /** Do it in the store; if that fails, go on in memory with what is known. */
  async #durably(work) {
    const store = this.#store;
    try {
      return await work(store);
    } catch (error) {
      if (!store.isLasting) throw error;
      if (this.#store === store) this.#store = fallbackStore(this.entries, this.#refusals); // else another call has
      return work(this.#store);
    }
  }

  async #refresh() {
    const { entries, refusals } = await this.#durably((store) => store.read(this.#reader));
    this.#kept = entries;
    this.#refusals = refusals;
    this.#onChange();
  }

  async #send() {
    if (this.#isSending) return;
    this.#isSending = true;
    try {
      for (let wait = FIRST_WAIT_MS; this.#kept.length;) {
        this.trouble = await tryOnce(() => this.#sendFirst());
        if (this.trouble) this.trouble.seconds = Math.round(wait / 1000);
        this.#onChange();
        if (this.trouble) await this.#pause(wait);
        wait = this.trouble ? Math.min(2 * wait, LONGEST_WAIT_MS) : FIRST_WAIT_MS;
      }
    } finally {
      this.#isSending = false;
    }
  }

  /** Send the oldest entry; returns the Unreachable that kept it here, or null. */
  async #sendFirst() {
    await this.#refresh(); // another window may have sent it
    const [entry] = this.#kept;
    if (!entry) return null;
    try {
      this.#onReply(entry, await post(entry.url, entry.body));
      await this.#durably((store) => store.remove(entry.seq));
    } catch (error) {
      if (error instanceof Unreachable) return error;
      if (!(error instanceof Refused)) throw error;
      await this.#refuse(entry, error);
    }
    await this.#refresh();
    this.#channel?.postMessage({ reader: this.#reader });
    return null;
  }

  async #refuse(entry, { message, status, body }) {
    await this.#refresh();
    const dependents = this.#kept.filter((other) => other.seq !== entry.seq && other.place.id === entry.place.id);
    await this.#durably((store) => store.refuse(entry, { message, status, body }, dependents));
  }

  /** Wait, or go on at once when the browser is back online or the reader comes back to this window. */
  #pause(milliseconds) {
    return Promise.race([sleep(milliseconds), new Promise((resolve) => { this.#wake = resolve; })]);
  }
}

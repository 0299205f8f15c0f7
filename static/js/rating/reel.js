/* The next images of the reading list, ready before they are asked for: AHEAD of them fetched and kept, which is what a
   reader can go on with while the network is gone, and DECODED of them decoded. */

import { Unreachable, bytes, get, sleep } from "./api.js";
import { outcomes } from "./outbox.js";
import { decoded } from "./picture.js";

const AHEAD = 20;
const DECODED = 4;
const AT_ONCE = 2; // pictures fetched side by side
const FEW = 8; // places left, in an open pool: the server hands out more
const LIMIT = 50; // places the server gives at once
const KEPT_BLOBS = 30; // of images already rated, for undo
const KEPT_PICTURES = 4;
const RETRIES = 4;
const PATIENCE_MS = 3000; // for the server's list, where a kept one can stand in

async function fetched(url) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await bytes(url);
    } catch (error) {
      if (!(error instanceof Unreachable) || attempt === RETRIES || !navigator.onLine) throw error;
      await sleep(500 * 2 ** attempt);
    }
  }
}

/** place[name] ??= make(), forgotten again if it fails: the next call tries anew. */
function once(place, name, make) {
  place[name] ??= make().catch((error) => {
    place[name] = null;
    throw error;
  });
  return place[name];
}

export class Reel {
  current = null; // the place on the screen, or on its way there
  #ready = [];
  #stored = [];
  #answered = new Set();
  #kept = []; // answered places that still hold their bytes
  #filling = null;
  #isFetching = false;
  #isOutdated = false;
  #isWhole = false; // what is held ready is all that is left of the list
  #outbox;
  #reader;
  #study;
  #url;
  #isPool;

  /** url: of the server's list; isPool: the list grows as it is read. */
  constructor({ outbox, reader, study, url, isPool = false }) {
    this.#outbox = outbox;
    this.#reader = reader;
    this.#study = study;
    this.#url = url;
    this.#isPool = isPool;
  }

  /** Take up what an earlier page left: places answered there but not yet sent, taken back, or only fetched. */
  async open() {
    for (const [id, { place, isAnswered, revision }] of this.#pending()) {
      if (isAnswered) this.#answered.add(id);
      else this.#ready.unshift({ ...place, revision });
    }
    this.#stored = await this.#outbox.store.places(this.#reader, this.#study).catch(() => []);
  }

  #pending() {
    return outcomes(this.#outbox.entries.filter((entry) => entry.study === this.#study));
  }

  #blob(place) {
    return once(place, "blob", async () => {
      const kept = await this.#outbox.store.picture(place.image).catch(() => null);
      if (kept) return kept;
      const blob = await fetched(place.image);
      this.#outbox.store.keepPicture(place.image, this.#reader, blob).catch(() => {}); // a reload fetches it again
      return blob;
    });
  }

  /** The place's picture, decoded; asked for now if it is not held. */
  picture(place) {
    return once(place, "picture", async () => decoded(await this.#blob(place)));
  }

  /** The next place, or null where the list is done. Call fill() once it is on the screen. */
  async take() {
    if (!this.#ready.length) await this.fill();
    this.current = this.#ready.shift() ?? null;
    return this.current;
  }

  putBack(place) {
    this.#ready = [place, ...this.#ready.filter((other) => other.id !== place.id)];
  }

  answer(place) {
    this.#answered.add(place.id);
    this.#kept.push(place);
    if (this.#kept.length > KEPT_BLOBS) this.#kept.shift().blob = null;
    if (this.#kept.length > KEPT_PICTURES) this.#kept.at(-KEPT_PICTURES - 1).picture = null;
  }

  /** Whether the place was answered, here or in another window. */
  isAnswered({ id }) {
    return this.#answered.has(id);
  }

  /** The place is on its way back to the screen. */
  reopen(place) {
    this.#answered.delete(place.id);
    this.#ready = this.#ready.filter((other) => other.id !== place.id);
    this.current = place;
  }

  /** Somebody else (another window, the server) says how it stands with a place: it leaves, or the list is asked again. */
  settle(id, isAnswered) {
    if (isAnswered) this.#answered.add(id);
    else this.#answered.delete(id);
    this.#ready = this.#ready.filter((place) => place.id !== id);
    this.#isOutdated ||= !isAnswered;
  }

  /** Hold the next places, with their pictures on the way. */
  fill() {
    this.#filling ??= this.#fill().finally(() => { this.#filling = null; });
    return this.#filling;
  }

  async #fill() {
    const atEnd = this.#isPool ? FEW : 1;
    const isShort = this.#ready.length < (this.#isWhole ? atEnd : AHEAD);
    if (this.#isOutdated || isShort) this.#merge(await this.#list());
    this.#fetchAhead();
    for (const place of this.#ready.slice(0, DECODED)) this.picture(place).catch(() => {}); // show() tells
  }

  async #list() {
    const pending = this.#pending(); // as of before the request: its reply knows at least as much
    const timeout = this.#stored.length ? PATIENCE_MS : undefined;
    const url = `${this.#url}?limit=${LIMIT}&reader=${this.#reader}`;
    try {
      const places = await get(url, { timeout });
      this.#isOutdated = false;
      this.#isWhole = places.length < LIMIT;
      this.#stored = [];
      return places.map((place) => {
        const revision = Math.max(place.revision, pending.get(place.id)?.revision ?? 0);
        return { ...place, revision };
      });
    } catch (error) {
      if (!(error instanceof Unreachable) || this.#ready.length || !this.#stored.length) throw error;
      return this.#stored.splice(0).map(({ rank, reader, study, ...place }) => place);
    }
  }

  /** In the list's order; what is held already stays the same object, with its picture. */
  #merge(places) {
    const held = new Map(this.#ready.map((place) => [place.id, place]));
    const listed = new Set(places.map((place) => place.id));
    const open = places.filter(({ id }) => !this.#answered.has(id) && id !== this.current?.id);
    this.#ready = [
      ...this.#ready.filter((place) => !listed.has(place.id)), // taken back here, not yet known to the server
      ...open.map((place) => held.get(place.id) ?? place),
    ];
    const list = this.current ? [this.current, ...this.#ready] : this.#ready;
    const unsaved = this.#outbox.entries.map((entry) => entry.place); // may be taken back before they are sent
    this.#outbox.store.keepPlaces(this.#reader, this.#study, list, unsaved).catch(() => {}); // a reload asks the server
  }

  /** Fetch pictures, the nearest first, until AHEAD of them are held. One that the server refuses holds up no other;
      nor does the first that fails otherwise, after which it is the connection. */
  async #fetchAhead() {
    if (this.#isFetching) return;
    this.#isFetching = true;
    const missed = new Set();
    const next = () => this.#ready.slice(0, AHEAD).find((place) => !place.blob && !missed.has(place));
    const work = async () => {
      for (let place = next(); place; place = next()) {
        try {
          await this.#blob(place);
        } catch (error) {
          if (error instanceof Unreachable && missed.size) return; // the next fill() tries again
          missed.add(place);
        }
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    this.#isFetching = false;
  }
}

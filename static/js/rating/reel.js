/* The next images of the reading list: fetched and decoded before they are needed. */

import { get, sleep } from "./api.js";

const DEPTH = 5; // images held ready
const MOST = 50; // places the server gives at once
const KEPT_PICTURES = 30; // of images already rated, for undo
const RETRIES = 4;

async function decoded(url) {
  for (let attempt = 0; ; attempt += 1) {
    const picture = new Image();
    picture.alt = "Image to be rated";
    picture.draggable = false;
    picture.src = url;
    try {
      await picture.decode();
      return picture;
    } catch {
      if (attempt === RETRIES) throw new Error("The image could not be loaded.");
      await sleep(500 * 2 ** attempt);
    }
  }
}

export class Reel {
  current = null; // id of the place on the screen, or on its way there
  #ready = [];
  #answered = new Set();
  #kept = [];
  #filling = null;
  #url;
  #unsaved;

  /** url: of the queue; unsaved(): how many answers the server does not know yet. */
  constructor(url, unsaved) {
    this.#url = url;
    this.#unsaved = unsaved;
  }

  /** The place's picture, decoded; asked for now if it is not held. */
  picture(place) {
    place.picture ??= decoded(place.image).catch((error) => {
      place.picture = null; // the next call tries anew
      throw error;
    });
    return place.picture;
  }

  /** The next place, or null where the list is done. */
  async take() {
    if (!this.#ready.length) await this.fill();
    const place = this.#ready.shift() ?? null;
    this.current = place?.id ?? null;
    this.fill().catch(() => {}); // take() itself waits for the list, and tells, when nothing is left
    return place;
  }

  putBack(place) {
    this.#ready = [place, ...this.#ready.filter((other) => other.id !== place.id)];
  }

  answer(place) {
    this.#answered.add(place.id);
    this.#kept.push(place);
    if (this.#kept.length > KEPT_PICTURES) this.#kept.shift().picture = null;
  }

  reopen(place) {
    this.#answered.delete(place.id);
    this.#ready = this.#ready.filter((other) => other.id !== place.id);
  }

  /** Hold DEPTH places, with their pictures on the way. */
  fill() {
    this.#filling ??= this.#fill().finally(() => { this.#filling = null; });
    return this.#filling;
  }

  async #fill() {
    if (this.#ready.length < DEPTH) {
      const limit = Math.min(MOST, 2 * DEPTH + this.#unsaved() + 1);
      const places = await get(`${this.#url}?limit=${limit}`);
      const known = new Set([...this.#ready.map((place) => place.id), ...this.#answered, this.current]);
      this.#ready.push(...places.filter((place) => !known.has(place.id)));
    }
    for (const place of this.#ready.slice(0, DEPTH)) this.picture(place).catch(() => {}); // show() tells
  }
}

/* What the reader has noted of the image on the screen before answering, kept against a reload or a crash. One note a
   study: there is one image at a time. */

const AFTER_MS = 250; // of no further key

export class Drafts {
  #store;
  #reader;
  #study;
  #kept = null; // of an earlier page, until its image comes
  #timer = null;
  #isStored = false;

  /** store(): the store that holds now. */
  constructor(store, reader, study) {
    this.#store = store;
    this.#reader = reader;
    this.#study = study;
  }

  async open() {
    this.#kept = await this.#store().draft(this.#reader, this.#study).catch(() => null);
    this.#isStored = Boolean(this.#kept);
  }

  /** What an earlier page noted of the place, once; null for any other. */
  take({ id }) {
    const kept = this.#kept?.id === id ? this.#kept : null;
    if (kept) this.#kept = null;
    return kept;
  }

  /** Keep a note {defects, comment} of a place, soon; `atOnce` while the page is closing. */
  keep({ id }, { defects, comment }, { atOnce = false } = {}) {
    clearTimeout(this.#timer);
    const write = () => {
      this.#isStored = true;
      const { isLasting } = this.#store();
      if (isLasting) this.#store().keepDraft({ reader: this.#reader, study: this.#study, id, defects, comment }).catch(() => {});
    };
    if (atOnce) write();
    else this.#timer = setTimeout(write, AFTER_MS);
  }

  /** The place was answered: the note went with it. */
  drop() {
    clearTimeout(this.#timer);
    this.#kept = null;
    if (!this.#isStored) return;
    this.#isStored = false;
    this.#store().dropDraft(this.#reader, this.#study).catch(() => {}); // at worst it is offered to nobody
  }
}

/* What must outlive the page, in IndexedDB: answers that the server does not have yet, answers it refused and nobody
   has read of, and the next places of the reading list with their pictures. A memory of the same shape stands in where
   the browser gives no database; it ends with the page. */

const NAME = "medsyn-rating";
const VERSION = 2;
const OPENS_WITHIN_MS = 3000; // a database that is blocked answers never

const ENTRIES = "entries"; // by seq, in order: {seq, reader, study, kind, url, body, place, value}
const REFUSALS = "refusals"; // by seq: an entry and why: {..., error: {message, body}}
const PLACES = "places"; // by reader, study, id: {reader, study, rank, id, prompt, image, revision, is_training}
const PICTURES = "pictures"; // by address: {image, reader, blob}
const DRAFTS = "drafts"; // by reader and study: {reader, study, id, defects, comment}, of the image on the screen

function upgrade(database, from) {
  if (from < 2) database.createObjectStore(DRAFTS, { keyPath: ["reader", "study"] });
  if (from >= 1) return;
  database.createObjectStore(ENTRIES, { keyPath: "seq", autoIncrement: true });
  database.createObjectStore(REFUSALS, { keyPath: "seq" });
  database.createObjectStore(PLACES, { keyPath: ["reader", "study", "id"] });
  database.createObjectStore(PICTURES, { keyPath: "image" });
}

const of = (reader) => (record) => record.reader === reader;
const byRank = (a, b) => a.rank - b.rank;

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = ({ oldVersion }) => upgrade(request.result, oldVersion);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    setTimeout(() => reject(new Error("the database does not open")), OPENS_WITHIN_MS);
  });
}

class BrowserStore {
  isLasting = true;
  #database;

  constructor(database) {
    this.#database = database;
    database.onversionchange = () => database.close();
  }

  /** Run `work(store, ...)` in one transaction; resolves with the result of the request it returns, once it is on
      the disk. It is committed within the same task: a page that crashes right after has handed it over. */
  #run(names, mode, work) {
    return new Promise((resolve, reject) => {
      const transaction = this.#database.transaction(names, mode, { durability: "strict" });
      const request = work(...names.map((name) => transaction.objectStore(name)));
      transaction.commit?.();
      transaction.oncomplete = () => resolve(request?.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error ?? new Error("not stored"));
    });
  }

  #all(name) {
    return this.#run([name], "readonly", (store) => store.getAll());
  }

  /** {entries, refusals} of a reader, in order. */
  async read(reader) {
    let entries;
    const refusals = await this.#run([ENTRIES, REFUSALS], "readonly", (waiting, refused) => {
      entries = waiting.getAll();
      return refused.getAll();
    });
    return { entries: entries.result.filter(of(reader)), refusals: refusals.filter(of(reader)) };
  }

  /** Keep an entry; the reading list changes with it: a rated place leaves it, one taken back is its first again. */
  add(entry) {
    const { reader, study, place } = entry;
    return this.#run([ENTRIES, PLACES], "readwrite", (entries, places) => {
      if (entry.kind === "rating") places.delete([reader, study, place.id]);
      if (entry.kind === "undo") places.put({ ...place, revision: entry.body.revision + 1, reader, study, rank: -Date.now() });
      return entries.add(entry);
    });
  }

  remove(seq) {
    return this.#run([ENTRIES], "readwrite", (entries) => entries.delete(seq));
  }

  /** Move an entry to the refusals, and drop `dependents`, which build on it. */
  refuse(entry, error, dependents) {
    return this.#run([ENTRIES, REFUSALS], "readwrite", (entries, refusals) => {
      for (const { seq } of [entry, ...dependents]) entries.delete(seq);
      return refusals.put({ ...entry, error });
    });
  }

  dismiss(seq) {
    return this.#run([REFUSALS], "readwrite", (refusals) => refusals.delete(seq));
  }

  async places(reader, study) {
    return (await this.#all(PLACES)).filter((record) => record.reader === reader && record.study === study).sort(byRank);
  }

  /** The reading list as it is now, in place of the one that was kept; whatever is another reader's goes. Pictures
      stay that belong to it or to `others`. */
  async keepPlaces(reader, study, places, others) {
    const old = await this.#all(PLACES);
    const pictures = await this.#run([PICTURES], "readonly", (images) => images.getAllKeys());
    const wanted = new Set([...places, ...others].map((place) => place.image));
    const isOutdated = (record) => record.reader !== reader || record.study === study;
    return this.#run([PLACES, PICTURES], "readwrite", (list, images) => {
      for (const record of old.filter(isOutdated)) list.delete([record.reader, record.study, record.id]);
      for (const image of pictures) if (!wanted.has(image)) images.delete(image);
      places.forEach(({ id, prompt, image, revision, is_training }, rank) => {
        list.put({ reader, study, rank, id, prompt, image, revision, is_training: Boolean(is_training) });
      });
    });
  }

  async picture(image) {
    return (await this.#run([PICTURES], "readonly", (images) => images.get(image)))?.blob ?? null;
  }

  keepPicture(image, reader, blob) {
    return this.#run([PICTURES], "readwrite", (images) => images.put({ image, reader, blob }));
  }

  async draft(reader, study) {
    return (await this.#run([DRAFTS], "readonly", (drafts) => drafts.get([reader, study]))) ?? null;
  }

  keepDraft(draft) {
    return this.#run([DRAFTS], "readwrite", (drafts) => drafts.put(draft));
  }

  dropDraft(reader, study) {
    return this.#run([DRAFTS], "readwrite", (drafts) => drafts.delete([reader, study]));
  }
}

class MemoryStore {
  isLasting = false;
  #entries = [];
  #refusals = [];
  #next = Date.now(); // beyond any seq of the database that the entries may come from

  constructor(entries = [], refusals = []) {
    for (const entry of entries) this.add(entry);
    this.#refusals = [...refusals];
  }

  async read() { return { entries: [...this.#entries], refusals: [...this.#refusals] }; }

  async add(entry) {
    if (this.#entries.some(({ body }) => body.client_uuid === entry.body.client_uuid)) return; // taken over already
    this.#next += 1;
    this.#entries.push({ ...entry, seq: entry.seq ?? this.#next });
  }

  async remove(seq) {
    this.#entries = this.#entries.filter((entry) => entry.seq !== seq);
  }

  async refuse(entry, error, dependents) {
    const gone = new Set([entry, ...dependents].map(({ seq }) => seq));
    this.#entries = this.#entries.filter(({ seq }) => !gone.has(seq));
    this.#refusals.push({ ...entry, error });
  }

  async dismiss(seq) {
    this.#refusals = this.#refusals.filter((refusal) => refusal.seq !== seq);
  }

  async places() { return []; }
  async keepPlaces() {}
  async picture() { return null; }
  async keepPicture() {}
  async draft() { return null; }
  async keepDraft() {}
  async dropDraft() {}
}

/** The browser's database, or a memory where there is none (private windows, a full disk, a policy). */
export async function openStore() {
  try {
    const store = new BrowserStore(await open());
    await store.read(0); // some browsers open what they then refuse to read
    return store;
  } catch {
    return new MemoryStore();
  }
}

/** A memory that takes over `entries` and `refusals` from a database that has failed. */
export const fallbackStore = (entries, refusals) => new MemoryStore(entries, refusals);

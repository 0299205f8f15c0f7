/* The rating page. One key rates and shows the next image; saving goes on behind it (js/rating/outbox.js), and the
   next images are ready before they are asked for (js/rating/reel.js). */

import { announce } from "./announce.js";
import { Anchors } from "./rating/anchors.js";
import { Unreachable, get, sleep, uuid } from "./rating/api.js";
import { Breaks } from "./rating/breaks.js";
import { Clock, display } from "./rating/clock.js";
import { Drafts } from "./rating/drafts.js";
import { Interlude } from "./rating/interlude.js";
import { label, showRefusals } from "./rating/notices.js";
import { Outbox, gain, outcomes } from "./rating/outbox.js";
import { part } from "./rating/page.js";
import { Progress } from "./rating/progress.js";
import { Reasons } from "./rating/reasons.js";
import { Reel } from "./rating/reel.js";
import { Remarks } from "./rating/remarks.js";
import { showSaving } from "./rating/saving.js";
import { openStore } from "./rating/store.js";
import { Training } from "./rating/training.js";
import { Viewer } from "./rating/viewer.js";

const DEAF_MS = 150; // after an image is painted: a key pressed for the image before must not rate this one
const FLASH_MS = 150;
const MOST_UNSAVED = 20; // beyond this, wait for the server
const PROMPTS_A_REMARK = [1, 2];

const room = document.querySelector("[data-room]").dataset;
const stage = part("stage");
const buttons = [...document.querySelectorAll("[data-grade], [data-cannot-judge]")];
const keyList = part("keys");
const GAP_MS = Number(room.gapMs); // darkness between two images
const reader = Number(room.reader);

const clock = new Clock();
const viewer = new Viewer(stage, part("viewbar"));
const anchors = new Anchors(part("anchors"), part("hold-anchors"), room.anchorsUrl);
const training = new Training(part("training"), part("lesson"), buttons, {
  done: Number(room.trainingDone),
  total: Number(room.trainingTotal),
});
const outbox = new Outbox(await openStore(), reader, {
  onChange: onSaving,
  onOther,
  onReply: (entry, reply) => training.heard(entry, reply),
});
const reel = new Reel({ outbox, reader, study: room.study, url: room.queueUrl, isPool: "pool" in room });
const remarks = new Remarks(part("remarks"), sendRemark, (draft) => { if (current && isOpen) drafts.keep(current, draft); });
const drafts = new Drafts(() => outbox.store, reader, room.study);
const interlude = new Interlude(part("interlude"));
const breaks = new Breaks(Number(room.breakEvery), part("breaks"));
const reasons = new Reasons(part("reasons"), ({ cannot_judge, comment }) => answer({ value: null, cannot_judge }, comment));
const history = []; // {place, value, label, defects, comment}, the last one at the end
const progress = new Progress({
  done: Number(room.done),
  total: Number(room.total),
  pace: Number(room.meanActiveMs),
  gap: GAP_MS,
});

let current = null; // the place on the screen
let isOpen = false; // keys count
let isMissing = false; // there is a place, but its image did not load: it can be said to be impossible to judge
let pressedAt = null;
let wasInTraining = false;
let isClosed = false; // the study, by an administrator, while this page was open
let hasBegun = false;
let isAskingOlder = false; // undoOlder() waits for the server
let turn = 0; // raised whenever another image is called for: what waits for an earlier one gives up

// What the page says ------------------------------------------------------------------------------------------

function onSaving() {
  showSaving(outbox);
  const fresh = showRefusals(outbox.refusals, (refusal) => outbox.dismiss(refusal));
  if (hasBegun) fresh.filter((refusal) => refusal.study === room.study).forEach(onRefused);
  training.look(outbox);
  if (!outbox.unsaved && !current && !progress.left) part("finished-saving").textContent = "Everything is saved.";
}

function note(text) {
  part("note").textContent = text;
  if (text) announce(text);
}

// From image to image ------------------------------------------------------------------------------------------

const painted = () => new Promise((resolve) => { requestAnimationFrame(() => requestAnimationFrame(resolve)); });

function close() {
  isOpen = false;
  isMissing = false;
  anchors.hide();
  reasons.close(); // it was asked of the image that leaves
  part("failed").hidden = true;
  interlude.goOn(); // what waited behind it gives up
  stage.dataset.gap = "";
  stage.setAttribute("aria-busy", "true");
}

/** Put `place` before the reader; keys count again once it is painted. */
async function show(place) {
  turn += 1;
  const mine = turn;
  current = place;
  reel.current = place;
  part("finished").hidden = true;
  let picture;
  try {
    picture = await reel.picture(place);
  } catch {
    if (mine === turn) miss(place);
    return;
  }
  if (mine !== turn) return;
  training.at(place);
  part("remarks").inert = false;
  viewer.show(picture);
  part("prompt").textContent = place.prompt;
  delete stage.dataset.gap;
  for (const button of buttons) button.disabled = isClosed;
  await painted();
  if (mine !== turn || isClosed) return;
  clock.restart();
  recall(place);
  if (pressedAt !== null) performance.measure("key-to-paint", { start: pressedAt, end: performance.now() });
  pressedAt = null;
  isOpen = true;
  stage.setAttribute("aria-busy", "false");
  reel.fill().catch(() => {}); // take() waits for the list, and tells, when nothing is left
}

/** The image of `place` is not to be had: another attempt, "cannot judge" and undo are all that is left. */
function miss(place) {
  training.at(place);
  viewer.clear();
  part("prompt").textContent = place.prompt;
  part("failed").hidden = false;
  for (const button of buttons) button.disabled = isClosed || "grade" in button.dataset;
  clock.restart();
  pressedAt = null;
  isMissing = true;
  isOpen = !isClosed;
  stage.setAttribute("aria-busy", "false"); // what is busy is not read out
  reel.fill().catch(() => {}); // those behind it may be had
}

/** What an earlier page noted of the place is there again, unless something else is. */
function recall(place) {
  const kept = drafts.take(place);
  const { defects, comment } = remarks.draft;
  if (kept && !defects.length && !comment && !remarks.isAboutLast) remarks.begin(kept);
}

/** What comes between the last image and `place`, or null. */
function before(place) {
  const was = wasInTraining;
  wasInTraining = Boolean(place.is_training);
  if (wasInTraining) return was ? null : training.beginning;
  return was ? training.ending(progress.total) : breaks.due(progress.left, GAP_MS);
}

/** A quiet page before `place`, where one is due; meanwhile its image comes. */
async function pause(place) {
  const page = before(place);
  if (!page) return;
  pressedAt = null; // from here on it is the reader who is waited for
  part("prompt").textContent = "";
  viewer.clear();
  for (const button of buttons) button.disabled = true;
  reel.picture(place).catch(() => {}); // show() tells
  training.at(place);
  stage.setAttribute("aria-busy", "false");
  announce(page.title);
  await interlude.show(page, { takesFocus: !remarks.isWriting });
}

function finish() {
  current = null;
  progress.end();
  training.at(null);
  reel.current = null;
  viewer.clear();
  part("prompt").textContent = "";
  part("finished").hidden = false;
  stage.setAttribute("aria-busy", "false");
  part("finished-saving").textContent = outbox.unsaved ? "The last ratings are being saved." : "Everything is saved.";
  for (const button of buttons) button.disabled = true;
  if (!remarks.isWriting) part("finished").querySelector("a").focus();
}

/** The next place, waited for as long as it takes. */
async function advance() {
  close();
  current = null;
  turn += 1;
  const mine = turn;
  const gap = sleep(GAP_MS);
  let place = null;
  for (let wait = 1000; ; wait = Math.min(2 * wait, 30_000)) {
    try {
      [place] = await Promise.all([reel.take(), gap]);
      break;
    } catch (error) {
      if (mine !== turn) return;
      note(`The next images cannot be fetched: ${error.message}. Trying again.`);
      const waited = new AbortController();
      await Promise.race([sleep(wait), new Promise((resolve) => { addEventListener("online", resolve, { signal: waited.signal }); })]);
      waited.abort();
      note("");
    }
  }
  if (mine === turn && place) await pause(place);
  if (mine === turn && place && reel.isAnswered(place)) { // in another window, during the pause
    advance();
    return;
  }
  if (mine === turn && !place) finish();
  else if (mine === turn) await show(place);
  else if (place && place.id !== current?.id) { // an undo came in between
    reel.putBack(place);
    reel.current = current;
  }
}

// What the reader does -----------------------------------------------------------------------------------------

const isListening = () => isOpen && clock.age >= DEAF_MS;
const address = (pattern, place) => pattern.replace(room.placeholder, place.id);

/** Hand what was done at `place` to the outbox. */
function send(kind, url, place, value, said) {
  const now = new Date().toISOString();
  const body = { ...said, revision: place.revision, client_uuid: uuid(), client_time: now, reader };
  const { id, prompt, image, revision } = place;
  const entry = { study: room.study, kind, url, body, value };
  entry.place = { id, prompt, image, revision, is_training: Boolean(place.is_training) };
  place.revision += 1;
  outbox.add(entry);
  return entry;
}

function sendRemark(given) {
  const { place, value, defects, comment } = given;
  send("remark", address(room.remarksUrl, place), place, value, { defects, comment });
}

function mayAnswer() {
  if (!isListening()) return false;
  if (outbox.unsaved < MOST_UNSAVED) return true;
  note(`${outbox.unsaved} ratings wait for the connection. Please wait until they are saved.`);
  return false;
}

/** Store {value} or {value: null, cannot_judge} for the image on the screen, and go on. */
function answer(judged, comment = null) {
  pressedAt = performance.now();
  const place = current;
  const said = remarks.draft;
  if (comment !== null) said.comment = comment;
  const { times } = clock;
  drafts.drop();
  const given = { place, value: judged.value, label: label(judged.value), ...said };
  const asks = PROMPTS_A_REMARK.includes(judged.value) && !said.defects.length && !said.comment;
  const shown = { ...display(), ...(isMissing ? {} : viewer.display) };
  const entry = send("rating", address(room.ratingUrl, place), place, judged.value, { ...judged, ...said, ...times, display: shown });
  reel.answer(place);
  note("");
  if (place.is_training) {
    teach(entry);
    return;
  }
  progress.took(times.active_ms);
  breaks.count(times.active_ms);
  history.push(given);
  remarks.begin({}, asks ? given : null);
  progress.count(1);
  advance();
}

/** In the training round: the image stays while its known grade comes and is read. */
async function teach(entry) {
  const mine = turn;
  isOpen = false;
  pressedAt = null;
  part("remarks").inert = true; // what was noted went with the answer
  for (const button of buttons) button.disabled = Number(button.dataset.grade) !== entry.value;
  const hasGoneOn = await training.teach(entry, entry.value);
  if (!hasGoneOn || mine !== turn) return;
  remarks.begin();
  advance();
}

function rate(value) {
  if (isMissing || !mayAnswer()) return;
  const button = buttons.find((candidate) => Number(candidate.dataset.grade) === value);
  button.setAttribute("aria-pressed", "true");
  setTimeout(() => button.setAttribute("aria-pressed", "false"), FLASH_MS);
  answer({ value });
}

function cannotJudge() {
  if (mayAnswer()) reasons.ask(remarks.draft.comment);
}

function undo() {
  if (current?.is_training) {
    note("What was said in the training round stays: it is not part of the study.");
    return;
  }
  if (!hasBegun || isClosed || isAskingOlder || (!isOpen && current)) return; // or about to be painted
  const last = history.pop();
  if (!last && !progress.done) {
    note("Nothing to undo.");
    return;
  }
  if (!last) {
    undoOlder();
    return;
  }
  send("undo", room.undoUrl, last.place, last.value, { assignment: last.place.id });
  goBackTo(last);
}

/** What was answered before this page was opened, and saved: the server knows which was the last. */
async function undoOlder() {
  if (outbox.unsaved) {
    note("Earlier ratings can be taken back once everything is saved.");
    return;
  }
  isAskingOlder = true;
  const [place, mine] = [current, turn];
  isOpen = false;
  let reply = null;
  try {
    reply = await outbox.undoLast(room.undoUrl);
  } catch (error) {
    note(`Nothing was taken back: ${error.message}${error instanceof Unreachable ? ". Try again later." : ""}`);
  }
  isAskingOlder = false;
  if (reply?.assignment) {
    outbox.tell("undo", room.study, reply.assignment);
    if (mine === turn) goBackTo({ place: reply.assignment, label: label(reply.value) });
    else onOther({ kind: "undo", study: room.study, id: reply.assignment.id }); // meanwhile another image came: it is next
  } else if (mine === turn) {
    if (reply) note("Nothing to undo.");
    isOpen = Boolean(place) && !isClosed;
  }
}

/** Show an answered place again; what was noted of it is there to be changed. */
function goBackTo(last) {
  if (current) reel.putBack(current);
  drafts.drop();
  breaks.discount();
  reel.reopen(last.place);
  remarks.begin(last);
  progress.count(-1);
  note(`Taken back: ${last.label}. Rate it again.`);
  close();
  show(last.place);
}

// What others do -----------------------------------------------------------------------------------------------

/** Another window of this reader rated a place, or took a rating back. */
function onOther({ kind, study, id, is_training }) {
  if (study !== room.study || kind === "remark") return;
  if (!is_training) progress.count(kind === "rating" ? 1 : -1);
  forget(id);
  reel.settle(id, kind === "rating");
  if (kind === "rating" && current?.id === id && !training.isBusy) {
    note("Rated in another window.");
    if (remarks.isAboutLast) remarks.flush(); // half-written
    remarks.begin();
    advance();
  } else if (kind === "undo" && !current) {
    advance();
  }
}

function forget(id) {
  const index = history.findIndex((given) => given.place.id === id);
  if (index >= 0) history.splice(index, 1);
}

/** The server's word stands: ask it how far the list has come, and whether the place is open. */
async function onRefused({ place, error }) {
  forget(place.id);
  remarks.dismiss(place.id);
  if (error.body?.code === "study_closed") {
    training.dismiss();
    reasons.close();
    isClosed = true;
    isOpen = false;
    for (const button of buttons) button.disabled = true;
    return;
  }
  const stands = ["submitted", "cannot_judge"].includes(error.body?.rating?.state);
  reel.settle(place.id, stands);
  if (current?.id === place.id && (stands || training.isBusy)) {
    training.dismiss();
    remarks.begin(); // what was noted of it is not the next one's
    advance();
  }
  const known = await get(room.progressUrl).catch(() => null); // the next reload counts anew
  if (known) progress.count(known.done + gain(outbox.entries.filter((entry) => entry.study === room.study)) - progress.done);
}

// Keys ---------------------------------------------------------------------------------------------------------

const actions = {
  0: cannotJudge,
  1: () => rate(1),
  2: () => rate(2),
  3: () => rate(3),
  c: () => remarks.write(),
  a: () => anchors.show(),
  "?": () => keyList.showModal(),
};
const GO_ON = new Set(["Enter", "0", "1", "2", "3"]);
const isTyping = (target) => target.matches?.("input, textarea, select, [contenteditable]");

/** A chip's key: always for the last image, if that is asked about; else as deaf as the grades. */
function onLetter(event) {
  if ((remarks.isAboutLast || isListening()) && remarks.press(event.key.toLowerCase())) event.preventDefault();
}

document.addEventListener("keydown", (event) => {
  if (keyList.open || reasons.isOpen || event.altKey || isTyping(event.target)) return;
  const isUndo = event.key === "Backspace" || ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z");
  if (isUndo) {
    event.preventDefault();
    if (!event.repeat) undo();
  } else if (event.ctrlKey || event.metaKey || viewer.press(event) || event.repeat) {
    return;
  } else if (interlude.isShown && event.key === "Enter" && event.target === document.body) {
    event.preventDefault();
    interlude.goOn();
  } else if (training.isBusy && GO_ON.has(event.key) && event.target === document.body) {
    event.preventDefault();
    training.goOn();
  } else if (event.key.toLowerCase() in actions) {
    event.preventDefault();
    actions[event.key.toLowerCase()]();
  } else if (event.key === "Enter" && event.target === document.body && remarks.isAboutLast) {
    remarks.dismiss();
  } else {
    onLetter(event);
  }
});
document.addEventListener("keyup", ({ key }) => { if (key.toLowerCase() === "a") anchors.hide(); });
for (const button of buttons) {
  button.addEventListener("click", () => {
    button.blur(); // the focus ring stays where the keyboard put it; a click leaves none beside the image
    if (training.isBusy) training.goOn();
    else actions[button.dataset.grade ?? 0]();
  });
}
part("undo").addEventListener("click", (event) => {
  event.target.blur();
  undo();
});
part("help").addEventListener("click", () => keyList.showModal());
function tryAgain() {
  close();
  show(current);
}
part("retry").addEventListener("click", tryAgain);
addEventListener("online", () => {
  if (current && !part("failed").hidden) tryAgain();
  else if (current) reel.fill().catch(() => {}); // what could not be fetched meanwhile
});
addEventListener("pagehide", () => {
  remarks.flush();
  const { defects, comment } = remarks.draft;
  if (current && isOpen && (defects.length || comment)) drafts.keep(current, remarks.draft, { atOnce: true });
});
addEventListener("beforeunload", (event) => {
  if (outbox.unsaved && !outbox.store.isLasting) event.preventDefault(); // nothing but this page has them
});

// Begin --------------------------------------------------------------------------------------------------------

await outbox.open();
const waiting = outbox.entries.filter((entry) => entry.study === room.study);
for (const { place, isAnswered, revision, entry } of outcomes(waiting).values()) {
  if (isAnswered && entry) {
    const { defects, comment } = entry.body;
    history.push({ place: { ...place, revision }, value: entry.value, label: label(entry.value), defects, comment });
  }
}
await Promise.all([reel.open(), drafts.open()]);
hasBegun = true;
remarks.begin();
progress.count(gain(waiting));
const untold = waiting.find((entry) => entry.kind === "rating" && entry.place.is_training);
wasInTraining = Boolean(untold);
if (untold) show({ ...untold.place }).then(() => teach(untold)); // an earlier page waited for its grade
else advance();

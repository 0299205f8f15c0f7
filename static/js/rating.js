/* The rating page. One key rates and shows the next image; saving goes on behind it (js/rating/outbox.js), and the
   next images are ready before they are asked for (js/rating/reel.js). */

import { announce } from "./announce.js";
import { uuid, sleep } from "./rating/api.js";
import { Clock, median } from "./rating/clock.js";
import { Outbox } from "./rating/outbox.js";
import { Reel } from "./rating/reel.js";
import { duration } from "./duration.js";

const GAP_MS = 100; // darkness between two images, against carrying the last one's impression over
const DEAF_MS = 150; // after an image is painted: a key pressed for the image before must not rate this one
const MOST_UNSAVED = 20; // beyond this, wait for the server
const PACE_OVER = 20; // images that the remaining time is estimated from
const GRADES = { 1: "Poor", 2: "Acceptable", 3: "Excellent" };

const room = document.querySelector("[data-room]");
const part = (name) => document.querySelector(`[data-${name}]`);
const stage = part("stage");
const buttons = [...document.querySelectorAll("[data-grade]")];
const keyList = part("keys");

const clock = new Clock();
const outbox = new Outbox(showSaving);
const reel = new Reel(room.dataset.queueUrl, () => outbox.unsaved);
const history = []; // {place, value}, the last one at the end
const paces = []; // milliseconds of the last images

let current = null; // the place on the screen
let isOpen = false; // keys count
let shownAt = null; // Date of its painting
let paintedAt = 0; // the same on performance's clock
let pressedAt = null;
let done = Number(room.dataset.done);
let isLeaving = false;
let isClosed = false; // the study, by an administrator, while this page was open
let turn = 0; // raised whenever another image is called for: what waits for an earlier one gives up
const total = Number(room.dataset.total);
if (room.dataset.meanActiveMs) paces.push(Number(room.dataset.meanActiveMs));

// What the page says ------------------------------------------------------------------------------------------

function showSaving({ unsaved, trouble }) {
  const foot = part("saving");
  foot.textContent = unsaved ? `${unsaved} unsaved${trouble ? `: ${trouble}` : ""}` : "saved";
  foot.toggleAttribute("data-trouble", Boolean(trouble));
  if (trouble) announce(foot.textContent);
  if (!unsaved && !current && done >= total) part("finished-saving").textContent = "Everything is saved.";
}

function showProgress() {
  const left = Math.max(total - done, 0);
  part("done").textContent = done;
  part("percent").textContent = total ? `${Math.floor((100 * done) / total)} %` : "";
  part("bar").value = done;
  part("left").textContent = left && paces.length ? `about ${duration((median(paces) + GAP_MS) / 1000 * left)} left` : "";
}

function notify(title, text) {
  const notice = document.createElement("div");
  notice.className = "notice warn";
  notice.setAttribute("role", "alert");
  const strong = document.createElement("strong");
  strong.textContent = title;
  const body = document.createElement("p");
  body.textContent = text;
  const close = document.createElement("button");
  close.type = "button";
  close.className = "button small";
  close.textContent = "Understood";
  close.addEventListener("click", () => notice.remove());
  notice.append(strong, body, close);
  document.querySelector(".messages").append(notice);
}

// From image to image ------------------------------------------------------------------------------------------

const painted = () => new Promise((resolve) => { requestAnimationFrame(() => requestAnimationFrame(resolve)); });

function close() {
  isOpen = false;
  stage.dataset.gap = "";
}

/** Put `place` before the reader; keys count again once it is painted. */
async function show(place) {
  turn += 1;
  const mine = turn;
  current = place;
  reel.current = place.id;
  part("finished").hidden = true;
  part("failed").hidden = true;
  let picture;
  try {
    picture = await reel.picture(place);
  } catch {
    part("failed").hidden = false;
    return;
  }
  if (mine !== turn) return;
  stage.querySelector("img")?.remove();
  stage.append(picture);
  part("prompt").textContent = place.prompt;
  delete stage.dataset.gap;
  for (const button of buttons) button.disabled = isClosed;
  await painted();
  if (mine !== turn || isClosed) return;
  shownAt = new Date();
  paintedAt = performance.now();
  if (pressedAt !== null) performance.measure("key-to-paint", { start: pressedAt, end: paintedAt });
  pressedAt = null;
  clock.restart();
  isOpen = true;
}

function finish() {
  current = null;
  reel.current = null;
  stage.querySelector("img")?.remove();
  part("prompt").textContent = "";
  part("finished").hidden = false;
  part("finished-saving").textContent = outbox.unsaved ? "The last ratings are being saved." : "Everything is saved.";
  for (const button of buttons) button.disabled = true;
  part("finished").querySelector("a").focus();
}

async function advance() {
  close();
  current = null;
  turn += 1;
  const mine = turn;
  let place = null;
  for (let wait = 1000; ; wait = Math.min(2 * wait, 30_000)) {
    try {
      [place] = await Promise.all([reel.take(), sleep(GAP_MS)]);
      break;
    } catch (error) {
      if (mine !== turn) return;
      part("saving").textContent = `The next images cannot be fetched: ${error.message}. Trying again.`;
      await sleep(wait);
    }
  }
  if (mine === turn && !place) finish();
  else if (mine === turn) await show(place);
  else if (place) reel.putBack(place); // an undo came in between
}

// What the reader does -----------------------------------------------------------------------------------------

function onRefused(error, place, value) {
  done -= 1;
  showProgress();
  const { code, rating } = error.body;
  if (code === "stale_revision" && rating?.state === "submitted") {
    done += 1;
    showProgress();
    notify("Rated in another window", `${GRADES[rating.value]} stands for this image there; ${GRADES[value]} was not stored. Undo it to change it.`);
  } else if (code === "study_closed") {
    isClosed = true;
    isOpen = false;
    for (const button of buttons) button.disabled = true;
    notify("The study was closed", `Your last rating (${GRADES[value]}) was not stored. ${error.message}`);
  } else {
    notify("Not stored", `Your rating ${GRADES[value]} of “${place.prompt}” was refused: ${error.message} Reload the page to see what stands.`);
  }
}

function rate(value) {
  if (!isOpen || performance.now() - paintedAt < DEAF_MS) return;
  if (outbox.unsaved >= MOST_UNSAVED) {
    announce("Too many ratings wait for the connection. Please wait.");
    return;
  }
  pressedAt = performance.now();
  flash(value);
  const place = current;
  const submission = {
    value,
    client_uuid: uuid(),
    revision: place.revision,
    shown_at: shownAt.toISOString(),
    active_ms: clock.milliseconds,
    client_time: new Date().toISOString(),
  };
  paces.push(submission.active_ms);
  if (paces.length > PACE_OVER) paces.shift();
  place.revision += 1;
  reel.answer(place);
  history.push({ place, value });
  done += 1;
  showProgress();
  part("note").textContent = "";
  outbox.add(room.dataset.ratingUrl.replace(room.dataset.placeholder, place.id), submission)
    .catch((error) => onRefused(error, place, value));
  advance();
}

function flash(value) {
  const button = buttons.find((candidate) => Number(candidate.dataset.grade) === value);
  button.setAttribute("aria-pressed", "true");
  setTimeout(() => button.setAttribute("aria-pressed", "false"), GAP_MS + 50);
}

/** Another window went on in the meantime: what this one holds is out of date. */
function startOver() {
  isLeaving = true;
  location.reload();
}

async function undo() {
  if (isClosed || (!isOpen && current)) return; // closed, or about to be painted
  const last = history.pop() ?? null;
  const request = outbox.add(room.dataset.undoUrl, { client_uuid: uuid(), client_time: new Date().toISOString() });
  if (last) {
    goBackTo(last.place, last.value);
    last.place.revision += 1;
  } else {
    close();
  }
  let reply;
  try {
    reply = await request;
  } catch (error) {
    notify("Not taken back", error.message);
    return;
  }
  if (last && reply.assignment?.id !== last.place.id) startOver();
  else if (!last && reply.assignment) goBackTo(reply.assignment, reply.value);
  else if (!last) {
    part("note").textContent = "Nothing to undo.";
    announce("Nothing to undo.");
    if (current) show(current);
  }
}

function goBackTo(place, value) {
  if (current) reel.putBack(current);
  reel.reopen(place);
  done = Math.max(0, done - 1);
  showProgress();
  const note = `Taken back: ${value} ${GRADES[value]}. Rate it again.`;
  part("note").textContent = note;
  announce(note);
  close();
  show(place);
}

document.addEventListener("keydown", (event) => {
  if (keyList.open || event.altKey) return;
  const isUndo = event.key === "Backspace" || ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z");
  if (isUndo) {
    event.preventDefault();
    if (!event.repeat) undo();
  } else if (event.ctrlKey || event.metaKey || event.repeat) {
    return;
  } else if (event.key in GRADES) {
    event.preventDefault();
    rate(Number(event.key));
  } else if (event.key === "?") {
    event.preventDefault();
    keyList.showModal();
  }
});
for (const button of buttons) {
  button.addEventListener("click", () => {
    button.blur(); // the focus ring stays where the keyboard put it; a click leaves none beside the image
    rate(Number(button.dataset.grade));
  });
}
part("undo").addEventListener("click", undo);
part("help").addEventListener("click", () => keyList.showModal());
part("retry").addEventListener("click", () => show(current));
addEventListener("beforeunload", (event) => {
  if (outbox.unsaved && !isLeaving) event.preventDefault(); // the browser asks before unsaved ratings are given up
});

showProgress();
advance();

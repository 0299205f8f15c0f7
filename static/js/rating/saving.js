/* The foot of the page: what is saved, what is not, and why. */

import { announce } from "../announce.js";
import { label } from "./notices.js";
import { part } from "./page.js";

const MOST_LISTED = 20;
let told = "";

function line({ kind, value, body, place }) {
  const item = document.createElement("li");
  const what = { rating: label(value), undo: "taken back", remark: `noted: ${(body.defects ?? []).join(", ") || "comment"}` };
  item.textContent = `${what[kind]} · ${place.prompt}`;
  return item;
}

function why(trouble) {
  if (!trouble) return "";
  const remedy = trouble.needsSignIn ? "sign in in another window, and they are saved" : `Trying again in ${trouble.seconds} s`;
  return `: ${trouble.message}. ${remedy}`;
}

/** Show how many entries wait, which, and what keeps them. */
export function showSaving(outbox) {
  const { unsaved, entries } = outbox;
  const trouble = unsaved ? outbox.trouble : null;
  part("saving").textContent = unsaved ? `${unsaved} unsaved${why(trouble)}` : "saved";
  part("saving").toggleAttribute("data-trouble", Boolean(trouble));
  part("sign-in").hidden = !trouble?.needsSignIn;
  part("unsaved").hidden = !unsaved;
  part("unsaved-list").replaceChildren(...entries.slice(0, MOST_LISTED).map(line));
  part("unkept").hidden = outbox.store.isLasting;
  const reason = trouble?.message ?? "";
  if (reason && reason !== told) announce(part("saving").textContent);
  told = reason;
}

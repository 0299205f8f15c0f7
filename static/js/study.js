/* A study's page keeps itself up to date: the parts marked data-live are taken from the page anew every 15 s while it is
   looked at, and the summary of the agreement page is put in once it has been computed, anew at most once a minute
   while ratings come in. Without this module the page is as right as when it was loaded, and agreement is one click
   away. */

import { NoAnswer, page } from "./server.js";

const EVERY_MS = 15_000;
const AGREEMENT_EVERY_MS = 60_000;
const box = document.querySelector("[data-agreement]");
let agreementAt = 0;
let isAgreementOld = true;

async function refresh() {
  const fresh = await page(location.href);
  for (const part of document.querySelectorAll("[data-live]")) {
    const newer = fresh.querySelector(`[data-live="${part.dataset.live}"]`);
    if (!newer || newer.innerHTML === part.dataset.seen) continue;
    isAgreementOld ||= part.dataset.live === "grades" && part.innerHTML !== newer.innerHTML;
    part.dataset.seen = newer.innerHTML;
    part.replaceChildren(...newer.childNodes);
  }
}

async function showAgreement() {
  if (!box || !isAgreementOld || Date.now() - agreementAt < AGREEMENT_EVERY_MS) return;
  agreementAt = Date.now();
  const summary = (await page(box.dataset.agreement)).querySelector("[data-summary]");
  isAgreementOld = false; // where no answer came it is asked for again, a minute later
  if (summary) box.replaceChildren(summary);
}

async function keepFresh(look) {
  try {
    if (!document.hidden) await look();
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error; // what is shown stays
  } finally {
    setTimeout(() => keepFresh(() => refresh().then(showAgreement)), EVERY_MS);
  }
}

keepFresh(showAgreement);
